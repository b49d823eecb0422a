"""One thread in every control and worker process: relays the outbox, rings for what waits, takes lost jobs back.

It sleeps on PostgreSQL's notifications, so a committed message leaves at once, and sweeps every `sweep_seconds` for
what no notification told. Any number of them may run side by side.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import exists, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.errors import LeaseLost
from penstock.events.services import place_committed
from penstock.fairness.claimable import claimable
from penstock.idempotency.services import forget_expired
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.lease import Held
from penstock.jobs.models import Job
from penstock.jobs.reaper import database_uptime_seconds, expire_waiting, reap
from penstock.jobs.silence import Silence
from penstock.logs import get_logger
from penstock.metrics import HouseMetrics
from penstock.outbox.relay import BATCH, Relay
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock.webhooks.services import due_deliveries

OUTBOX_CHANNEL: Final = "penstock_outbox"
_MOST_DEPLOYMENTS: Final = 1000
_GATHERING_SECONDS: Final = 0.01  # after a round, so that of many submits a second several share the next one
_MOST_DELIVERIES: Final = 200

log = get_logger(__name__)


class Housekeeper:
    """Relay, sweeper and reaper over one database and one Redis."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        celery: Celery,
        settings: Settings,
        metrics: HouseMetrics | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics or HouseMetrics(CollectorRegistry())
        self._relay = Relay(database, redis, celery)
        self._journal = Journal(redis, "housekeeper")
        self._silence = Silence(settings.lease_seconds)

    def run(self, stop: threading.Event) -> None:
        """Keep house until `stop` is set; outages of PostgreSQL or Redis are waited out."""
        while not stop.is_set():
            try:
                self._listen_and_sweep(stop)
            except (psycopg.Error, DBAPIError, PoolTimeout, OSError) as error:
                self._silence.asked()  # and asked again, until something answers
                self._note_interruption(error, stop)
            except (RedisError, BrokerError) as error:
                self._silence.forget()
                self._note_interruption(error, stop)

    def sweep(self) -> None:
        """One round: what is lost is taken back, what is late ends, what is old goes, what is waiting is rung for.

        What needs Redis comes last: without it the rest is done all the same.
        """
        self._each_transaction(self._reap)
        self._each_transaction(self._expire)
        with self._transaction() as session:
            place_committed(session)
        with self._transaction() as session:
            forget_expired(session, self._settings.idempotency_seconds)
        self._drain()
        with self._transaction() as session:
            self._relay.ring(session, _deployments_with_waiting_jobs(session))
            due = due_deliveries(session, self._relay.room_for_webhooks(_MOST_DELIVERIES))
            self._relay.ring_webhooks(session, due)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        self._silence.asked()
        with self._database.transaction() as session:
            yield session
        self._silence.answered()

    def _note_interruption(self, error: Exception, stop: threading.Event) -> None:
        log.warning("housekeeping.interrupted", error=type(error).__name__, detail=str(error).split("\n")[0])
        stop.wait(min(self._settings.sweep_seconds, 1.0))

    def _listen_and_sweep(self, stop: threading.Event) -> None:
        self._silence.asked()
        address = self._database.url.replace("postgresql+psycopg://", "postgresql://", 1)
        with psycopg.connect(
            address, autocommit=True, connect_timeout=5, application_name="penstock-listen"
        ) as listener:
            listener.execute(f"LISTEN {OUTBOX_CHANNEL}")
            self._silence.answered()
            next_sweep = 0.0
            while not stop.is_set():
                if time.monotonic() >= next_sweep:
                    self.sweep()
                    next_sweep = time.monotonic() + self._settings.sweep_seconds
                elif _notified(listener, max(next_sweep - time.monotonic(), 0.0)):
                    self._drain()
                    stop.wait(_GATHERING_SECONDS)

    def _drain(self) -> None:
        """Pass on all that is there. What is committed meanwhile tells of itself."""
        taken = BATCH
        while taken == BATCH:
            self._silence.asked()
            taken = self._relay.pass_on()
            self._silence.answered()
            self._metrics.outbox_passed_on.inc(taken)

    def _each_transaction(self, work: Callable[[Session], list[str]]) -> None:
        """Repeat `work` in transactions of its own until it finds nothing; tell live readers of the jobs it moved."""
        while True:
            with self._transaction() as session:
                moved = work(session)
            if not moved:
                return
            self._announce(moved)

    def _announce(self, moved: Sequence[str]) -> None:
        try:
            self._journal.announce(moved)
        except RedisError as error:  # readers find out by themselves, within seconds
            log.warning("housekeeping.not_announced", jobs=len(moved), error=type(error).__name__)

    def _reap(self, session: Session) -> list[str]:
        uptime = database_uptime_seconds(session)
        self._silence.answered()
        if not self._silence.long_over or uptime < self._settings.lease_seconds:
            return []
        jobs = reap(session, self._shut_out, max_own_crashes=self._settings.max_own_crashes)
        for job in jobs:
            self._metrics.leases_expired.inc()
            log.warning("lease.reaped", job=job.id, state=job.state, fence=job.fence)
        return [job.id for job in jobs]

    def _expire(self, session: Session) -> list[str]:
        return [job.id for job in expire_waiting(session)]

    def _shut_out(self, held: Held) -> Sequence[JournalEntry]:
        """Open the journal with the next fence, so that the silent holder, should it live, can append no more."""
        with suppress(LeaseLost):
            opened = self._journal.open(held.job_id, held.fence + 1)
            self._journal.close(held.job_id, held.fence + 1, self._settings.journal_linger_seconds)
            return opened.entries
        return []


def _notified(listener: psycopg.Connection, seconds: float) -> bool:
    """Wait up to `seconds` for a notification, and take every one that has come."""
    return any(True for _ in listener.notifies(timeout=seconds, stop_after=1))


def _deployments_with_waiting_jobs(session: Session) -> list[str]:
    """One probe of an index for each deployment, however many jobs wait."""
    waiting = exists().where(Job.deployment_id == Deployment.id, claimable())
    return list(session.scalars(select(Deployment.id).where(waiting).limit(_MOST_DEPLOYMENTS)))
