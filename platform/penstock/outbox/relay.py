"""The relay: passes committed outbox messages on to Celery. Runs in every control and worker process, without a lock.

Messages are taken with SKIP LOCKED and deleted in the transaction that publishes them: at least once, in no order. It
looks before it rings: a deployment's queue never holds more doorbells than its workers have free slots.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from celery import Celery
from redis import Redis
from sqlalchemy import Integer, Row, bindparam, delete, func, select, text
from sqlalchemy.orm import Session

from penstock.broker import CONTROL_QUEUE, DELIVER_WEBHOOK_TASK, SERVE_TASK, serve_queue
from penstock.db import Database
from penstock.fairness.claimable import claimable
from penstock.fairness.kept_free import kept_free_of
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, JobState
from penstock.outbox.models import OutboxMessage
from penstock.outbox.services import Topic
from penstock.registry.models import Hosting, Worker

BATCH: Final = 200
"""Messages that are passed on at once."""

_WORKER_SILENCE_SECONDS: Final = 15.0
_BREATH_SECONDS: Final = 1.0
"""A transaction that says nothing for five seconds is taken for a frozen process's (`penstock.db`), and ended."""


_TAKE: Final = (
    delete(OutboxMessage)
    .where(
        OutboxMessage.id.in_(
            select(OutboxMessage.id).order_by(OutboxMessage.id).limit(BATCH).with_for_update(skip_locked=True)
        )
    )
    .returning(OutboxMessage.topic, OutboxMessage.payload)
    .execution_options(synchronize_session=False)
)


class Relay:
    """Passes messages from one database to one broker."""

    def __init__(self, database: Database, redis: Redis, celery: Celery) -> None:
        self._database = database
        self._redis = redis
        self._celery = celery

    def drain(self) -> int:
        """Pass on all that waits; returns how many messages there were."""
        total = 0
        while taken := self.pass_on():
            total += taken
        return total

    def pass_on(self) -> int:
        """Pass on a batch of what waits; returns how many messages it had."""
        with self._database.transaction() as session:
            batch = session.execute(_TAKE).all()
            for deployment_id, jobs in _rung_for(batch).items():
                self._ring(session, deployment_id, at_most=jobs)
            deliveries = [each.payload["delivery_id"] for each in batch if each.topic == Topic.WEBHOOK]
            self.ring_webhooks(session, deliveries)
        return len(batch)

    def ring(self, session: Session, deployment_ids: Iterable[str]) -> int:
        """Ring for the deployments' waiting jobs, as far as slots are free and no doorbell lies there yet."""
        return sum(self._ring(session, deployment_id) for deployment_id in deployment_ids)

    def _ring(self, session: Session, deployment_id: str, *, at_most: float = math.inf) -> int:
        queue = serve_queue(deployment_id)
        wanted = _wanted(session, deployment_id)
        missing = max(int(min(wanted - self._redis.llen(queue), at_most)), 0) if wanted else 0
        self._send(session, SERVE_TASK, [deployment_id] * missing, queue)
        return missing

    def _send(self, session: Session, task: str, arguments: Iterable[str], queue: str) -> None:
        """Send the task with each of the arguments, however slow that is: the session's transaction is kept alive."""
        breathed_at = time.monotonic()
        for argument in arguments:
            self._celery.send_task(task, args=[argument], queue=queue)
            if time.monotonic() - breathed_at >= _BREATH_SECONDS:
                session.execute(text("SELECT 1"))
                breathed_at = time.monotonic()

    def room_for_webhooks(self, most: int) -> int:
        """How many deliveries may be rung for again, so that slow receivers cannot make the queue grow without end."""
        return max(most - self._redis.llen(CONTROL_QUEUE), 0)

    def ring_webhooks(self, session: Session, delivery_ids: Iterable[str]) -> None:
        """Ask control processes to attempt the deliveries."""
        self._send(session, DELIVER_WEBHOOK_TASK, delivery_ids, CONTROL_QUEUE)


def _rung_for(batch: Sequence[Row[tuple[str, dict[str, Any]]]]) -> dict[str, float]:
    """For how many jobs the batch's doorbells are, by deployment; those that do not say are for all that wait.

    Bells for others that wait would be rung again at every submit, for as long as a worker is on its way to them: the
    slower it is, the more threads of it would look in vain.
    """
    jobs: dict[str, float] = {}
    for message in batch:
        if message.topic == Topic.DOORBELL:
            deployment_id = message.payload["deployment_id"]
            jobs[deployment_id] = jobs.get(deployment_id, 0) + message.payload.get("jobs", math.inf)
    return jobs


_FREE: Final = (
    Worker.slots
    - select(func.count())
    .where(Job.lease_holder == Worker.id, Job.state == JobState.RUNNING)
    .correlate(Worker)
    .scalar_subquery()
)
_FREE_SLOTS: Final = (
    select(
        func.coalesce(func.sum(func.greatest(_FREE, 0)), 0),
        func.coalesce(func.sum(func.greatest(_FREE - kept_free_of(Worker.slots), 0)), 0),
    )
    .join(Hosting, Hosting.worker_id == Worker.id)
    .where(
        Hosting.deployment_id == bindparam("deployment_id"),
        Hosting.state == "ready",
        Worker.draining.is_(False),
        Worker.heartbeat_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, _WORKER_SILENCE_SECONDS),
    )
)
_FIRST_WAITING: Final = (
    select(Job.job_class)
    .where(Job.deployment_id == bindparam("deployment_id"), claimable())
    .order_by(Job.job_class)
    .limit(bindparam("at_most", type_=Integer))
    .subquery()
)
_SHADOWS: Final = _FIRST_WAITING.c.job_class == JobClass.SHADOW.value
_COUNT_WAITING: Final = select(func.count(), func.count().filter(_SHADOWS)).select_from(_FIRST_WAITING)


def _wanted(session: Session, deployment_id: str) -> int:
    """For how many jobs there are both a slot and somebody who would take it; shadow jobs leave some slots free."""
    free, free_of_shadows = session.execute(_FREE_SLOTS, {"deployment_id": deployment_id}).one()
    if not free:
        return 0
    waiting, shadows = session.execute(_COUNT_WAITING, {"deployment_id": deployment_id, "at_most": int(free)}).one()
    others = waiting - shadows
    return int(others + min(shadows, max(free_of_shadows - others, 0)))


def free_slots(session: Session, deployment_id: str) -> int:
    """Slots that live workers with the deployment ready have free now."""
    return int(session.execute(_FREE_SLOTS, {"deployment_id": deployment_id}).one()[0])


def count_waiting(session: Session, deployment_id: str, *, at_most: int) -> int:
    """How many jobs may be claimed of the deployment, counted no further than `at_most`."""
    return int(session.execute(_COUNT_WAITING, {"deployment_id": deployment_id, "at_most": at_most}).one()[0])
