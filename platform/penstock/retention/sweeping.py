"""One thread in every control process: deletes what is past its time, and erases tenants that are to be erased.

Any number of them may run side by side: each takes chunks that nobody else has locked.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.errors import PenstockError
from penstock.files.storage import FileStorage
from penstock.files.writing import sweep as sweep_files
from penstock.jobs.journal import Journal
from penstock.logs import get_logger
from penstock.metrics import ControlMetrics
from penstock.quotas.counters import Counters
from penstock.registry.hosting_services import expire_dead_workers
from penstock.retention.aging import Kind, delete_some
from penstock.retention.erasure import Erasure
from penstock.settings import Settings

_BREATH_SECONDS: Final = 0.02  # between chunks, which others' transactions may wait for
_SILENT_WORKER_SECONDS: Final = 86_400.0  # a day, in which operators can see who fell silent
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    """A tenant, and before which moment what it has of each kind is past its time."""

    tenant_id: str
    before: Mapping[Kind, datetime]


class RetentionSweeper:
    """Deletes by chunks, each in a transaction of its own, until it is told to stop."""

    def __init__(self, database: Database, redis: Redis, settings: Settings, metrics: ControlMetrics) -> None:
        self._database, self._settings, self._metrics = database, settings, metrics
        self._journal = Journal(redis, "retention")
        self._storage = FileStorage.of(settings)
        self._erasure = Erasure(database, self._journal, Counters(redis), self._storage)

    def run(self, stop: threading.Event) -> None:
        """Sweep every `retention_sweep_seconds` until `stop` is set; outages are waited out."""
        while not stop.is_set():
            try:
                self.sweep(stop)
            except (SQLAlchemyError, RedisError, PenstockError, OSError) as error:
                log.warning("retention.interrupted", error=type(error).__name__)
            stop.wait(self._settings.retention_sweep_seconds)

    def sweep(self, stop: threading.Event) -> None:
        """One round over workers and all tenants, to the end of what is due by now, or until `stop` is set."""
        self._forget_silent_workers()
        for due in self._due():
            for kind, before in due.before.items():
                while not stop.is_set() and self._delete_some(kind, due.tenant_id, before):
                    stop.wait(_BREATH_SECONDS)
        while not stop.is_set() and sweep_files(self._database, self._storage):
            pass
        for tenant_id in self._erasure.erasing():
            while not stop.is_set() and self._erasure.step(tenant_id):
                stop.wait(_BREATH_SECONDS)

    def _forget_silent_workers(self) -> None:
        """One that was killed left its row behind. One that wakes after all registers again."""
        with self._database.transaction() as session:
            gone = expire_dead_workers(session, _SILENT_WORKER_SECONDS)
        for worker_id in gone:
            log.info("worker.forgotten", worker=worker_id)

    def _delete_some(self, kind: Kind, tenant_id: str, before: datetime) -> int:
        with self._database.transaction() as session:
            count = delete_some(session, self._journal, kind, tenant_id, before)
        if count:
            self._metrics.retention_deleted.labels(kind.value).inc(count)
            log.info("retention.deleted", tenant=tenant_id, kind=kind.value, count=count)
        return count

    def _due(self) -> Iterator[_Due]:
        """The tenants that keep something for a time only; a tenant's own days go before the installation's."""
        with self._database.transaction() as session:
            now: datetime = session.scalars(select(func.now())).one()
            tenants = session.execute(
                select(Tenant.id, *(getattr(Tenant, kind.column) for kind in Kind)).where(
                    Tenant.erasing_since.is_(None)
                )
            ).all()
        for tenant_id, *own in tenants:
            days = {
                kind: getattr(self._settings, kind.column) if mine is None else mine
                for kind, mine in zip(Kind, own, strict=True)
            }
            yield _Due(tenant_id, {kind: now - timedelta(days=each) for kind, each in days.items() if each is not None})
