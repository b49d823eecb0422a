"""A worker that takes no jobs any more although all looks well: seen, told, and replaced."""

import time
from collections.abc import Callable

import pytest
from celery import Celery
from penstock.broker import serve_queue
from penstock.db import Database
from penstock.registry.models import Deployment, Worker
from penstock_worker.app import STALLED_EXIT_CODE
from penstock_worker.consumption import ConsumptionWatch
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import select, text

from tests.factories import make_deployment, make_tenant, submit_job
from tests.patience import PATIENCE_SECONDS, eventually
from tests.worker.conftest import Jobs, StartWorker

LONG = {"temperature": 0.0, "max_tokens": 900, "ignore_eos": True}


def test_a_consumer_that_fell_deaf_ends_so_that_another_may_take_its_place(
    database: Database, deployment: Deployment, jobs: Jobs, start_worker: StartWorker, celery_app: Celery
) -> None:
    """The subscription goes, by Celery's own remote control; connection, heartbeat and engine stay as they were."""
    worker = start_worker(consumption_stall_seconds=1.5, worker_drain_seconds=0)
    assert jobs.finished(jobs.submit(params=LONG | {"max_tokens": 3})).state == "succeeded"
    queue = serve_queue(deployment.id)

    def cancelled() -> bool:
        return bool(celery_app.control.cancel_consumer(queue, reply=True, timeout=1.0))

    eventually(cancelled, "the end of the subscription")
    waiting = jobs.submit(params=LONG | {"max_tokens": 5})
    assert worker.process.wait(PATIENCE_SECONDS) == STALLED_EXIT_CODE
    log = worker.log.read_text()
    assert "consumption.stalled" in log
    assert "worker.restarting" in log
    assert jobs.get(waiting).state == "queued"
    with database.transaction() as session:
        assert session.scalars(select(Worker)).all() == []


class Watched:
    """A watch over one deployment, without a worker around it."""

    def __init__(self, database: Database, redis: Redis, deployment_ids: list[str]) -> None:
        self.stalls: list[float] = []
        self.watch = ConsumptionWatch(database, redis, lambda: deployment_ids, self.stalls.append, stall_seconds=1.0)
        self.watch._alive_at -= 60

    @property
    def stalled(self) -> bool:
        return self.watch._is_stalled()


@pytest.fixture
def watched(database: Database, redis: Redis) -> Callable[..., Watched]:
    """Watches a deployment for which one job has waited for a minute, unless told otherwise."""

    def make(*, waits: bool = True, open_: bool = True, held: bool = False, seconds: float = 60) -> Watched:
        with database.transaction() as session:
            deployment_id = make_deployment(session).id
            if waits:
                job = submit_job(session, make_tenant(session))
                session.execute(
                    text("UPDATE job SET queued_at = now() - make_interval(secs => :seconds), held = :held"),
                    {"seconds": seconds, "held": held},
                )
                assert job.deployment_id == deployment_id
        return Watched(database, redis, [deployment_id] if open_ else [])

    return make


def test_it_is_a_stall_when_jobs_wait_beside_free_places(watched: Callable[..., Watched]) -> None:
    assert watched().stalled


@pytest.mark.parametrize(
    "case",
    [{"waits": False}, {"open_": False}, {"held": True}, {"seconds": 0}],
    ids=["nothing waits", "no place is free", "its batch is paused", "it has only just come"],
)
def test_it_is_none_when_nothing_can_be_taken(watched: Callable[..., Watched], case: dict[str, object]) -> None:
    assert not watched(**case).stalled


def test_claims_and_fruitless_looks_alike_are_signs_of_life(watched: Callable[..., Watched]) -> None:
    watched_one = watched()
    watched_one.watch._stall_seconds = 30.0
    assert [watched_one.watch.look() for _ in range(3)] == [False, False, True]
    assert watched_one.stalls[0] > 60
    watched_one.watch.note_claim()
    assert not watched_one.watch.look()
    assert len(watched_one.stalls) == 1


def test_a_place_that_has_just_come_free_is_no_stall(watched: Callable[..., Watched]) -> None:
    """A long job has ended, and its thread is about to claim the next one."""
    watched_one = watched()
    for _ in range(3):
        assert not watched_one.watch.look()
        assert not watched_one.watch.look()
        watched_one.watch.note_claim()
        assert not watched_one.watch.look()
        watched_one.watch._alive_at -= 60
    assert watched_one.stalls == []


def test_an_outage_is_no_stall(watched: Callable[..., Watched]) -> None:
    deaf = watched()
    deaf.watch._redis = Redis(port=1, retry=Retry(NoBackoff(), 0))
    assert not deaf.stalled
    assert time.monotonic() - deaf.watch._alive_at < 30, "after it doorbells take their time"
