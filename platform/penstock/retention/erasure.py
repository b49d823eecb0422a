"""Erasing a tenant: chunk after chunk of all that it has, and its own row last, which every other row refers to.

Each step is a transaction of its own and finds its work in the database, so another control process goes on where one
crashed, and any number of them may be at it together. A row that comes in meanwhile (a job's last event, a file whose
writer was slow) keeps the tenant's row from going, and goes in the next round.
"""

from typing import Final

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from penstock.auth.audit import Action
from penstock.auth.models import AuditEntry, Tenant
from penstock.batches.models import Batch
from penstock.bulk.models import BulkOperation
from penstock.db import Base, Database
from penstock.files.models import File, FileState
from penstock.files.storage import FileStorage
from penstock.files.writing import sweep
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.quotas.counters import Counters
from penstock.retention.aging import JOBS_AT_ONCE, delete_batch_some, delete_operation_some
from penstock.retention.chunks import ROWS_AT_ONCE, delete_chunk
from penstock.retention.deletion import delete_jobs

_BY_OTHER_STEPS: Final = frozenset({"job", "batch", "bulk_operation", "file", "audit_entry"})
log = get_logger(__name__)


class Erasure:
    """Erases tenants from PostgreSQL, Redis and the file storage."""

    def __init__(self, database: Database, journal: Journal, counters: Counters, storage: FileStorage) -> None:
        self._database, self._journal, self._counters, self._storage = database, journal, counters, storage

    def erasing(self) -> list[str]:
        """The tenants that are to be erased."""
        with self._database.transaction() as session:
            wanted = select(Tenant.id).where(Tenant.erasing_since.is_not(None))
            return list(session.scalars(wanted.order_by(Tenant.erasing_since)))

    def step(self, tenant_id: str) -> bool:
        """Erase some of what is there; whether there may be more to do at once."""
        for work in (
            self._stop_running,
            self._delete_jobs,
            self._delete_batches,
            self._delete_operations,
            self._hide_files,
        ):
            with self._database.transaction() as session:
                if work(session, tenant_id):
                    return True
        if sweep(self._database, self._storage):
            return True
        with self._database.transaction() as session:
            if session.scalar(select(Job.id).where(Job.tenant_id == tenant_id).limit(1)) is not None:
                return False  # one runs, and ends at its next token
        return self._delete_rows(tenant_id) or self._finish(tenant_id)

    def _stop_running(self, session: Session, tenant_id: str) -> int:
        running = Job.tenant_id == tenant_id, Job.state == JobState.RUNNING, Job.cancel_requested_at.is_(None)
        chosen = select(Job.id).where(*running).limit(ROWS_AT_ONCE).with_for_update(skip_locked=True)
        asked = update(Job).where(Job.id.in_(chosen)).values(cancel_requested_at=func.now()).returning(Job.id)
        return len(session.scalars(asked).all())

    def _delete_jobs(self, session: Session, tenant_id: str) -> int:
        still = select(Job.id).where(Job.tenant_id == tenant_id, Job.state != JobState.RUNNING)
        job_ids = session.scalars(still.limit(JOBS_AT_ONCE).with_for_update(skip_locked=True)).all()
        if job_ids:
            delete_jobs(session, self._journal, job_ids)
        return len(job_ids)

    def _delete_batches(self, session: Session, tenant_id: str) -> int:
        chosen = select(Batch.id).where(Batch.tenant_id == tenant_id).limit(1).with_for_update(skip_locked=True)
        batch_id = session.scalar(chosen)
        return delete_batch_some(session, batch_id) if batch_id is not None else 0

    def _delete_operations(self, session: Session, tenant_id: str) -> int:
        chosen = select(BulkOperation.id).where(BulkOperation.tenant_id == tenant_id).limit(1)
        operation_id = session.scalar(chosen.with_for_update(skip_locked=True))
        return delete_operation_some(session, operation_id) if operation_id is not None else 0

    def _hide_files(self, session: Session, tenant_id: str) -> int:
        # One that is being written is left to its writer, or to the sweeper when that is gone.
        ready = File.tenant_id == tenant_id, File.state == FileState.READY
        hidden = update(File).where(*ready).values(state=FileState.DELETING, touched_at=func.now()).returning(File.id)
        return len(session.scalars(hidden).all())

    def _delete_rows(self, tenant_id: str) -> bool:
        """Delete from whatever other table names the tenant, those first that refer to others; whether any was."""
        for table in reversed(Base.metadata.sorted_tables):
            if "tenant_id" in table.c and table.name not in _BY_OTHER_STEPS:
                with self._database.transaction() as session:
                    if delete_chunk(session, table.name, "tenant_id", tenant_id):
                        return True
        return False

    def _finish(self, tenant_id: str) -> bool:
        """Delete the tenant itself, if nothing refers to it any more; whether there may be more to do at once."""
        try:
            with self._database.transaction() as session:
                tenant = session.scalars(
                    select(Tenant).where(Tenant.id == tenant_id).with_for_update(skip_locked=True)
                ).one_or_none()
                if tenant is None:
                    return False
                _forget_changes(session, tenant_id)
                session.delete(tenant)
                session.flush()
                self._counters.forget(tenant_id)
                self._storage.delete_folder(tenant_id)
        except IntegrityError as error:
            log.info("tenant.not_erased_yet", tenant=tenant_id, error=type(error).__name__)
            return False
        log.info("tenant.erased", tenant=tenant_id)
        return False


def _forget_changes(session: Session, tenant_id: str) -> None:
    """The record keeps the one entry that says that the tenant was erased, and by whom."""
    others = AuditEntry.tenant_id == tenant_id, AuditEntry.action != Action.TENANT_ERASED
    session.execute(delete(AuditEntry).where(*others).execution_options(synchronize_session=False))
