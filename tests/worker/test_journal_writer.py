"""The journal writer on a real Redis: one call for all jobs, fences, lost journals, outages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from penstock.broker import make_redis
from penstock.jobs.journal import AppendResult, Journal, JournalEntry, Round
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.settings import Settings
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.running import Finished, Lost, RunningJob
from pydantic import SecretStr
from redis import Redis

from tests.patience import eventually
from tests.worker.proxy import Proxy


class CountingJournal(Journal):
    """Counts its rounds."""

    calls = 0

    def write(self, work: Round) -> list[AppendResult]:
        self.calls += 1
        return super().write(work)


def running_job(job_id: str, fence: int = 1, lease_seconds: float = 60) -> RunningJob:
    now = time.monotonic()
    claim = Claim(Job(id=job_id, params={}), fence, [])
    return RunningJob(claim, claimed_at=now, lease_until=now + lease_seconds)


def grow(job: RunningJob, count: int) -> None:
    start = len(job.entries)
    job.entries += [JournalEntry(0, at, at, f"t{at} ", None, job.fence) for at in range(start, start + count)]


@contextmanager
def running(writer: JournalWriter) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=writer.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def journal(redis: Redis) -> CountingJournal:
    return CountingJournal(redis, "test")


def texts(journal: Journal, job: RunningJob) -> str:
    return "".join(entry.text for entry in journal.read(job.id))


def test_all_jobs_of_a_step_go_in_one_call(journal: CountingJournal) -> None:
    jobs = [running_job(f"job_{number}") for number in range(50)]
    for job in jobs:
        journal.open(job.id, job.fence)
        grow(job, 3)
    writer = JournalWriter(journal, linger_seconds=60)
    writer.mark(*jobs)
    with running(writer):
        eventually(lambda: all(job.journalled == 3 for job in jobs), "the entries")
    assert journal.calls == 1
    assert {texts(journal, job) for job in jobs} == {"t0 t1 t2 "}


def test_the_last_entries_are_there_before_a_job_settles(journal: CountingJournal) -> None:
    job = running_job("job_a")
    journal.open(job.id, job.fence)
    writer = JournalWriter(journal, linger_seconds=60)
    with running(writer):
        grow(job, 5)
        job.end(Finished(JobState.SUCCEEDED))
        writer.mark(job)
        assert job.settled.wait(10)
        assert len(journal.read(job.id)) == 5


def test_a_later_holder_shuts_this_one_out(journal: CountingJournal) -> None:
    job = running_job("job_a", fence=1)
    journal.open(job.id, 1)
    journal.open(job.id, 2)
    writer = JournalWriter(journal, linger_seconds=60)
    with running(writer):
        grow(job, 1)
        writer.mark(job)
        assert job.settled.wait(10)
    assert job.ending == Lost()
    assert journal.read(job.id) == []


def test_a_journal_that_redis_lost_is_rewritten_from_memory(journal: CountingJournal, redis: Redis) -> None:
    job = running_job("job_a")
    journal.open(job.id, job.fence)
    writer = JournalWriter(journal, linger_seconds=60)
    with running(writer):
        grow(job, 4)
        writer.mark(job)
        eventually(lambda: job.journalled == 4, "the first entries")
        redis.flushall()
        grow(job, 1)
        writer.mark(job)
        eventually(lambda: job.journalled == 5, "the rewritten journal")
    assert texts(journal, job) == "t0 t1 t2 t3 t4 "


def test_nothing_is_written_while_the_lease_is_in_doubt(journal: CountingJournal) -> None:
    doubtful, sure = running_job("job_a", lease_seconds=0), running_job("job_b")
    writer = JournalWriter(journal, linger_seconds=60)
    for job in (doubtful, sure):
        journal.open(job.id, job.fence)
        grow(job, 2)
    writer.mark(doubtful, sure)
    with running(writer):
        eventually(lambda: sure.journalled == 2, "the other job's entries")
        assert journal.read(doubtful.id) == []
        doubtful.lease_until = time.monotonic() + 60  # renewed
        eventually(lambda: doubtful.journalled == 2, "the entries held back")
    assert texts(journal, doubtful) == "t0 t1 "


def test_a_finished_jobs_journal_gets_its_time_to_live(journal: CountingJournal, redis: Redis) -> None:
    job = running_job("job_a")
    journal.open(job.id, job.fence)
    grow(job, 1)
    job.end(Finished(JobState.SUCCEEDED))
    writer = JournalWriter(journal, linger_seconds=60)
    writer.mark(job)
    with running(writer):
        assert job.settled.wait(10)
        writer.close(job)
        eventually(lambda: 0 < int(redis.ttl("penstock:journal:{job_a}")) <= 60, "a time to live")


def test_a_journal_that_redis_lost_before_its_last_entries_gets_its_time_to_live_too(
    journal: CountingJournal, redis: Redis
) -> None:
    job = running_job("job_a")
    journal.open(job.id, job.fence)
    redis.flushall()
    grow(job, 3)
    writer = JournalWriter(journal, linger_seconds=60)
    writer.close(job)
    with running(writer):
        eventually(lambda: 0 < int(redis.ttl("penstock:journal:{job_a}")) <= 60, "a time to live")
    assert texts(journal, job) == "t0 t1 t2 "


@pytest.fixture
def cut_off(settings: Settings, redis: Redis) -> Iterator[tuple[Proxy, Redis]]:
    """A client of the test's Redis, whose line can be cut."""
    address = settings.redis_url.get_secret_value()
    port = redis.connection_pool.connection_kwargs["port"]
    proxy = Proxy(port)
    client = make_redis(
        settings.model_copy(update={"redis_url": SecretStr(address.replace(f":{port}/", f":{proxy.port}/"))})
    )
    yield proxy, client
    client.close()
    proxy.close()


def test_an_outage_of_redis_loses_nothing_and_holds_no_result_up(cut_off: tuple[Proxy, Redis], redis: Redis) -> None:
    proxy, client = cut_off
    journal, direct = Journal(client, "test"), Journal(redis, "test")
    going_on, ending = running_job("job_a"), running_job("job_b")
    for job in (going_on, ending):
        direct.open(job.id, job.fence)
        grow(job, 2)
    writer = JournalWriter(journal, linger_seconds=60)
    with running(writer):
        writer.mark(going_on, ending)
        eventually(lambda: going_on.journalled == ending.journalled == 2, "the first entries")
        proxy.cut()
        grow(going_on, 3)
        ending.end(Finished(JobState.SUCCEEDED))
        writer.mark(going_on, ending)
        assert ending.settled.wait(30)  # PostgreSQL gets its result without Redis
        writer.close(ending)
        assert texts(direct, going_on) == "t0 t1 "
        proxy.mend()
        eventually(lambda: going_on.journalled == 5, "the entries kept in memory")
        eventually(expires(redis, ending), "the closed journal")
    assert texts(direct, going_on) == "t0 t1 t2 t3 t4 "


def expires(redis: Redis, job: RunningJob) -> Callable[[], bool]:
    return lambda: int(redis.ttl(f"penstock:journal:{{{job.id}}}")) > 0
