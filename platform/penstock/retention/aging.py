"""What is past its time, a chunk at a time: each finds a tenant's oldest by an index, locks, skips the locked, deletes.

Takes a session, never commits.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVarTuple

from sqlalchemy import ColumnElement, Select, delete, exists, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from penstock.batches.models import Batch, BatchLine
from penstock.batches.states import FINAL, UNFINISHED
from penstock.bulk.models import BulkItem, BulkOperation
from penstock.events.models import FeedEvent
from penstock.files.models import File, FileState
from penstock.ids import first_id
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.retention.chunks import ROWS_AT_ONCE, delete_chunk
from penstock.retention.deletion import delete_jobs
from penstock.usage.days import roll_up_before
from penstock.webhooks.models import WebhookDelivery

JOBS_AT_ONCE: Final = 100
Columns = TypeVarTuple("Columns")


class Kind(StrEnum):
    """What has a retention of its own: the setting and the tenant's column are `retain_<kind>_days`."""

    JOBS = "jobs"
    EVENTS = "events"
    DELIVERIES = "deliveries"
    FILES = "files"
    USAGE = "usage"

    @property
    def column(self) -> str:
        return f"retain_{self.value}_days"


def delete_some(session: Session, journal: Journal, kind: Kind, tenant_id: str, before: datetime) -> int:
    """Delete some of what the tenant has of that kind since before the moment; 0 when nothing more is found."""
    if kind is Kind.JOBS:
        return (
            _jobs(session, journal, tenant_id, before)
            or _batches(session, tenant_id, before)
            or _operations(session, tenant_id, before)
        )
    return _OTHERS[kind](session, tenant_id, before)


def _jobs(session: Session, journal: Journal, tenant_id: str, before: datetime) -> int:
    in_use = exists().where(Batch.id == Job.batch_id, Batch.state.in_(UNFINISHED))
    old = select(Job.id).where(Job.tenant_id == tenant_id, Job.finished_at < before, ~in_use)
    job_ids = session.scalars(_locked(old.order_by(Job.finished_at), JOBS_AT_ONCE, of=Job)).all()
    if job_ids:
        delete_jobs(session, journal, job_ids)
    return len(job_ids)


def _batches(session: Session, tenant_id: str, before: datetime) -> int:
    """Lines of one old batch, and the batch itself once it has none."""
    old = _old(Batch.id, "batch", Batch.tenant_id == tenant_id, before)
    ended = old.where(Batch.state.in_(FINAL), Batch.finished_at < before)
    batch_id = session.scalar(_locked(ended, 1))
    return delete_batch_some(session, batch_id) if batch_id is not None else 0


def _operations(session: Session, tenant_id: str, before: datetime) -> int:
    """Items of one old bulk operation, and the operation itself once it has none."""
    old = _old(BulkOperation.id, "bulk", BulkOperation.tenant_id == tenant_id, before)
    operation_id = session.scalar(_locked(old.where(BulkOperation.finished_at < before), 1))
    return delete_operation_some(session, operation_id) if operation_id is not None else 0


def delete_batch_some(session: Session, batch_id: str) -> int:
    """Delete lines of a batch that the caller holds, or the batch when it has none left; how many rows."""
    gone = delete_chunk(session, BatchLine.__tablename__, "batch_id", batch_id)
    return gone or _count(session, delete(Batch).where(Batch.id == batch_id))


def delete_operation_some(session: Session, operation_id: str) -> int:
    """The same for a bulk operation and its items."""
    gone = delete_chunk(session, BulkItem.__tablename__, "operation_id", operation_id)
    return gone or _count(session, delete(BulkOperation).where(BulkOperation.id == operation_id))


def _events(session: Session, tenant_id: str, before: datetime) -> int:
    # Places are given in the order of time: the feed's first events are its oldest, and no index by time is needed.
    placed = select(FeedEvent.id, FeedEvent.created_at).where(
        FeedEvent.tenant_id == tenant_id, FeedEvent.position.is_not(None)
    )
    first = placed.order_by(FeedEvent.position).limit(ROWS_AT_ONCE).subquery()
    old = select(FeedEvent.id).join(first, first.c.id == FeedEvent.id).where(first.c.created_at < before)
    return _count(session, delete(FeedEvent).where(FeedEvent.id.in_(_locked(old, ROWS_AT_ONCE, of=FeedEvent))))


def _deliveries(session: Session, tenant_id: str, before: datetime) -> int:
    old = _old(WebhookDelivery.id, "msg", WebhookDelivery.tenant_id == tenant_id, before)
    ended = old.where(WebhookDelivery.status != "waiting", WebhookDelivery.created_at < before)
    return _count(session, delete(WebhookDelivery).where(WebhookDelivery.id.in_(_locked(ended, ROWS_AT_ONCE))))


def _files(session: Session, tenant_id: str, before: datetime) -> int:
    """Hide old files; `files.writing.sweep` deletes their bytes and then their rows."""
    reading = exists().where(Batch.input_file_id == File.id, Batch.state.in_(UNFINISHED))
    old = _old(File.id, "file", File.tenant_id == tenant_id, before)
    unused = old.where(File.state == FileState.READY, File.created_at < before, ~reading)
    hidden = update(File).where(File.id.in_(_locked(unused, ROWS_AT_ONCE, of=File))).values(state=FileState.DELETING)
    return _count(session, hidden)


def _usage(session: Session, tenant_id: str, before: datetime) -> int:
    return roll_up_before(session, tenant_id, before, limit=ROWS_AT_ONCE)


_OTHERS: Final[Mapping[Kind, Callable[[Session, str, datetime], int]]] = MappingProxyType(
    {Kind.EVENTS: _events, Kind.DELIVERIES: _deliveries, Kind.FILES: _files, Kind.USAGE: _usage}
)


def _old(id_: InstrumentedAttribute[str], prefix: str, of_tenant: ColumnElement[bool], before: datetime) -> Select[Any]:
    """What was made before the moment, by the time in its id: so the index by tenant and id is read no further."""
    return select(id_).where(of_tenant, id_ < first_id(prefix, before)).order_by(id_)


def _locked(query: Select[*Columns], most: int, of: Any = None) -> Select[*Columns]:
    return query.limit(most).with_for_update(skip_locked=True, of=of)


def _count(session: Session, statement: Any) -> int:
    done: Any = session.execute(statement.execution_options(synchronize_session=False))
    return int(done.rowcount)
