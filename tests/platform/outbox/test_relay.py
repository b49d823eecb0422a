"""The relay: nothing leaves before its transaction commits, nothing is lost, and no queue is flooded."""

import contextlib
import threading
from types import SimpleNamespace

import pytest
from celery import Celery
from penstock.broker import CONTROL_QUEUE, serve_queue
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.housekeeping import Housekeeper
from penstock.outbox import relay as relay_module
from penstock.outbox.models import OutboxMessage
from penstock.outbox.relay import Relay
from penstock.outbox.services import Topic, post
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import event, func, select

from tests.factories import make_deployment, make_tenant, make_worker, submit_job


@pytest.fixture
def relay(database: Database, redis: Redis, celery_app: Celery) -> Relay:
    return Relay(database, redis, celery_app)


def waiting_messages(database: Database) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(OutboxMessage)) or 0


def test_a_burst_of_jobs_rings_no_oftener_than_slots_are_free(database: Database, redis: Redis, relay: Relay) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        make_worker(session, deployment, slots=3)
        tenant = make_tenant(session)
        for _ in range(10):
            submit_job(session, tenant)
    assert relay.drain() == 10
    assert redis.llen(serve_queue(deployment.id)) == 3
    with database.transaction() as session:
        assert relay.ring(session, [deployment.id]) == 0
    assert waiting_messages(database) == 0


def test_a_submit_rings_for_its_own_job_while_workers_are_on_their_way_to_others(
    database: Database, redis: Redis, relay: Relay
) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        make_worker(session, deployment, slots=8)
        tenant = make_tenant(session)
        for _ in range(3):
            submit_job(session, tenant)
    queue = serve_queue(deployment.id)
    relay.drain()
    assert redis.llen(queue) == 3
    redis.delete(queue)  # three threads have heard, and have not claimed yet
    with database.transaction() as session:
        submit_job(session, tenant)
    relay.drain()
    assert redis.llen(queue) == 1
    with database.transaction() as session:
        post(session, Topic.DOORBELL, {"deployment_id": deployment.id})  # for all that wait
    relay.drain()
    assert redis.llen(queue) == 4


def test_busy_slots_are_not_rung_for(database: Database, redis: Redis, relay: Relay) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        worker = make_worker(session, deployment, slots=2)
        tenant = make_tenant(session)
        for _ in range(4):
            submit_job(session, tenant)
        for _ in range(2):
            lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=30)
    relay.drain()
    assert redis.llen(serve_queue(deployment.id)) == 0


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_a_deployment_that_nobody_has_ready_is_not_rung_for(
    database: Database, redis: Redis, relay: Relay, state: str
) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        make_worker(session, deployment, state=state)
        submit_job(session, make_tenant(session))
    relay.drain()
    assert redis.llen(serve_queue(deployment.id)) == 0


def test_what_was_rolled_back_is_never_sent(database: Database, redis: Redis, relay: Relay) -> None:
    with contextlib.suppress(RuntimeError), database.transaction() as session:
        post(session, Topic.WEBHOOK, {"delivery_id": "msg_1"})
        raise RuntimeError
    assert relay.drain() == 0
    assert redis.llen(CONTROL_QUEUE) == 0


def test_two_relays_pass_each_message_on_once(database: Database, redis: Redis, relay: Relay) -> None:
    with database.transaction() as session:
        for number in range(500):
            post(session, Topic.WEBHOOK, {"delivery_id": f"msg_{number}"})
    sent: list[int] = []
    threads = [threading.Thread(target=lambda: sent.append(relay.drain())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sent) == 500
    assert redis.llen(CONTROL_QUEUE) == 500


def test_a_transaction_is_not_taken_for_a_frozen_one_however_slow_the_broker_is(
    database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends one that says nothing for five seconds; here each message takes one."""
    with database.transaction() as session:
        for number in range(12):
            post(session, Topic.WEBHOOK, {"delivery_id": f"msg_{number}"})
    now, heard = [100.0], [100.0]
    silences: list[float] = []

    class SlowBroker:
        def send_task(self, name: str, *, args: list[str], queue: str) -> None:
            now[0] += 1.0

    def listen(*_: object) -> None:
        silences.append(now[0] - heard[0])
        heard[0] = now[0]

    monkeypatch.setattr(relay_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    event.listen(database.engine, "before_cursor_execute", listen)
    try:
        assert Relay(database, redis, SlowBroker()).drain() == 12
    finally:
        event.remove(database.engine, "before_cursor_execute", listen)
    assert now[0] == 112.0
    assert max(silences) <= 2.0


def test_a_commit_wakes_the_housekeeper_and_a_lost_doorbell_is_rung_again(
    database: Database, redis: Redis, celery_app: Celery, settings: Settings
) -> None:
    stop = threading.Event()
    keeper = Housekeeper(database, redis, celery_app, settings)
    thread = threading.Thread(target=keeper.run, args=[stop])
    with database.transaction() as session:
        deployment = make_deployment(session)
        make_worker(session, deployment)
        tenant = make_tenant(session)
    thread.start()
    try:
        with database.transaction() as session:
            submit_job(session, tenant)
        queue = serve_queue(deployment.id)
        assert redis.brpop([queue], timeout=10) is not None
        assert redis.brpop([queue], timeout=10) is not None, "nobody claimed: the sweeper rings again"
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
