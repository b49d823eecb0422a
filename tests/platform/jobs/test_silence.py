"""When a lease that ran out speaks against its holder: silence of the server counts, an error does not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from celery import Celery
from penstock.broker import make_redis
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.housekeeping import Housekeeper
from penstock.jobs.models import Job
from penstock.jobs.silence import Silence
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text

from tests.factories import make_deployment, make_tenant, make_worker, submit_job
from tests.patience import eventually

KeepHouse = Callable[..., None]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_a_long_silence_makes_it_wait_a_lease() -> None:
    clock = Clock()
    silence = Silence(10.0, clock)
    assert silence.long_over
    told = []
    for seconds in (4.9, 5.1):
        silence.asked()
        clock.now += seconds / 2
        silence.asked()  # once more, after an error
        clock.now += seconds / 2
        silence.answered()
        told.append(silence.long_over)
    for seconds in (9.9, 0.2):
        clock.now += seconds
        told.append(silence.long_over)
    assert told == [True, False, False, True]


def test_time_in_which_nothing_was_asked_is_no_silence() -> None:
    clock = Clock()
    silence = Silence(10.0, clock)
    silence.asked()
    silence.forget()
    clock.now += 60
    silence.answered()
    assert silence.long_over


@pytest.fixture
def lost(database: Database) -> str:
    """A job whose holder fell silent."""
    with database.transaction() as session:
        deployment = make_deployment(session)
        submit_job(session, make_tenant(session))
        worker = make_worker(session, deployment)
        claim = lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=30)
        session.execute(text("UPDATE job SET lease_expires_at = clock_timestamp() - interval '1 second'"))
    assert claim is not None
    return claim.job.id


def state_of(database: Database, job_id: str) -> str:
    with database.transaction() as session:
        return session.get_one(Job, job_id).state


@pytest.fixture
def keep_house(settings: Settings, redis: Redis, celery_app: Celery) -> Iterator[KeepHouse]:
    """Runs a housekeeper until the test's end, on a pool of its own where none is given."""
    stop, threads, databases = threading.Event(), list[threading.Thread](), list[Database]()

    def run(its: Settings, pool: Database | None = None) -> None:
        databases.append(pool or Database(its))
        housekeeper = Housekeeper(databases[-1], redis, celery_app, its)
        threads.append(threading.Thread(target=housekeeper.run, args=(stop,)))
        threads[-1].start()

    yield run
    stop.set()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()


def test_connections_that_break_again_and_again_stop_no_reaper(
    database: Database, settings: Settings, lost: str, keep_house: KeepHouse
) -> None:
    later = text("UPDATE job SET lease_expires_at = clock_timestamp() + make_interval(secs => :seconds)")
    with database.transaction() as session:
        session.execute(later, {"seconds": 3600})
    keep_house(settings)
    broken: set[int] = set()

    def twice() -> bool:
        broken.update(break_listeners(database))
        return len(broken) > 1  # so the housekeeper has noticed the first

    eventually(twice, "two listeners")
    with database.transaction() as session:
        session.execute(later, {"seconds": -1})

    def taken_back() -> bool:
        break_listeners(database)
        return state_of(database, lost) == "queued"

    eventually(taken_back, "the reaper", patience=30)


def break_listeners(database: Database) -> set[int]:
    """The ids of those whose connection was broken."""
    with database.engine.connect() as connection:
        listening = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
        return set(connection.execute(text(listening), {"name": "penstock-listen"}).scalars())


def test_a_server_that_was_silent_for_long_gives_holders_a_lease(
    database: Database, settings: Settings, lost: str, redis: Redis, celery_app: Celery
) -> None:
    clock = Clock()
    housekeeper = Housekeeper(database, redis, celery_app, settings.model_copy(update={"lease_seconds": 0.5}))
    housekeeper._silence = Silence(0.5, clock)
    housekeeper._silence.asked()
    clock.now += 0.3
    housekeeper.sweep()
    assert state_of(database, lost) == "running"
    clock.now += 0.6
    housekeeper.sweep()
    assert state_of(database, lost) == "queued"


def test_without_redis_lost_jobs_come_back_and_late_ones_end(
    database: Database, settings: Settings, lost: str, celery_app: Celery
) -> None:
    with database.transaction() as session:
        late = submit_job(session, make_tenant(session), deadline="2099-01-01T00:00:00Z").id
        session.execute(text("UPDATE job SET deadline = now() - interval '1 second' WHERE id = :id"), {"id": late})
    nowhere = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0"), "lease_seconds": 0.5})
    housekeeper = Housekeeper(database, make_redis(nowhere, retries=0), celery_app, nowhere)
    with suppress(RedisError):
        housekeeper.sweep()
    assert (state_of(database, lost), state_of(database, late)) == ("queued", "expired")


def test_a_pool_without_a_connection_ends_no_housekeeper(
    database: Database,
    settings: Settings,
    lost: str,
    keep_house: KeepHouse,
    capsys: pytest.CaptureFixture[str],
) -> None:
    update = {"database_pool_size": 1, "database_wait_seconds": 0.05, "lease_seconds": 0.5}
    said: list[str] = []

    def interrupted() -> bool:
        said.append(capsys.readouterr().out)
        return "housekeeping.interrupted" in "".join(said)

    pool = Database(settings.model_copy(update=update))
    with pool.transaction() as session:
        session.execute(text("SELECT 1"))
        keep_house(settings.model_copy(update=update), pool)
        eventually(interrupted, "a wait in vain", patience=30)
    eventually(lambda: state_of(database, lost) == "queued", "the reaper", patience=30)
