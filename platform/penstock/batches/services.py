"""What the web process does with batches: make, read, pause, change, cancel, retry. Takes a session, never commits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.batches.models import Batch, BatchLine
from penstock.batches.schemas import BatchRequest, BatchRetryRequest, span_of
from penstock.batches.states import RETRYABLE, RUNNING, BatchState, LineState
from penstock.batches.telling import BatchEvent, tell
from penstock.errors import BatchFinished, IdempotencyKeyReused, NotFound, NothingToRetry, ValidationFailed
from penstock.fairness.counters import wake
from penstock.files import services as files
from penstock.files.models import Purpose
from penstock.idempotency.services import HEADER, KeyedRequest
from penstock.ids import new_id
from penstock.jobs.locks import lock_queue
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.outbox.services import Topic, post


class Owner(Protocol):
    """Whose batch it will be: a program with its key, or a person, who has none. `models` None is all."""

    @property
    def tenant_id(self) -> str: ...

    @property
    def key_id(self) -> str | None: ...

    @property
    def models(self) -> Collection[str] | None: ...


@dataclass(frozen=True, slots=True)
class Made:
    """A batch. `replayed` when an earlier request with the same key has made it."""

    batch: Batch
    replayed: bool


def create(session: Session, owner: Owner, request: BatchRequest, keyed: KeyedRequest | None) -> Made:
    """A batch over the tenant's file, to be validated next.

    Raises `NotFound` for the file, `ValidationFailed` for a deadline in the past, `IdempotencyKeyReused`.
    """
    file = files.get(session, owner.tenant_id, request.input_file_id, field="input_file_id")
    if file.purpose != Purpose.BATCH:
        raise ValidationFailed(f"{file.id} is a {file.purpose} file; upload the input as one", field="input_file_id")
    values = {
        "input_file_id": file.id,
        "endpoint": request.endpoint,
        "completion_window": request.completion_window,
        "invalid_lines": request.invalid_lines,
        "priority": request.priority,
        "user_metadata": request.metadata or {},
        "output_expires_seconds": request.output_expires_after.seconds if request.output_expires_after else None,
        "expires_at": _end(session, request.completion_window, request.deadline),
    }
    return _make(session, owner, values, keyed)


def get(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """The tenant's batch. Raises `NotFound`, also for another tenant's."""
    return _one(session, tenant_id, batch_id, locked=False)


def list_batches(
    session: Session, tenant_id: str, *, limit: int, after: str | None = None
) -> tuple[Sequence[Batch], bool]:
    """A page of the tenant's batches, newest first, and whether there are more."""
    query = select(Batch).where(Batch.tenant_id == tenant_id)
    if after is not None:
        query = query.where(Batch.id < after)
    found = session.scalars(query.order_by(Batch.id.desc()).limit(limit + 1)).all()
    return found[:limit], len(found) > limit


def pause(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Begin no more lines: those that wait are held, those that run go on. Raises `BatchFinished`."""
    batch = _running(session, tenant_id, batch_id)
    if batch.paused_at is None:
        batch.paused_at = _now(session)
        hold_waiting(session, batch, held=True)
        tell(session, batch, BatchEvent.PAUSED)
    return batch


def resume(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Go on with a paused batch. Raises `BatchFinished`."""
    batch = _running(session, tenant_id, batch_id)
    if batch.paused_at is not None:
        batch.paused_at, batch.resumed_at, batch.due_at = None, _now(session), _now(session)
        tell(session, batch, BatchEvent.RESUMED)
        hold_waiting(session, batch, held=False)
    return batch


def change_priority(session: Session, tenant_id: str, batch_id: str, priority: int) -> Batch:
    """Reorder the batch among others: its waiting jobs at once, its other lines as their jobs are made."""
    batch = _running(session, tenant_id, batch_id)
    batch.priority = priority
    session.flush()
    session.execute(update(Job).where(Job.id.in_(_waiting(batch))).values(priority=priority))
    return batch


def cancel(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Stop the batch; what has finished is kept. Asking again changes nothing. Raises `BatchFinished`."""
    batch = _one(session, tenant_id, batch_id, locked=True)
    if batch.state != BatchState.CANCELLING:
        _refuse_ended(batch)
        batch.state, batch.cancelling_at, batch.due_at = BatchState.CANCELLING, _now(session), _now(session)
        tell(session, batch, BatchEvent.CANCELLING)
    return batch


def retry(
    session: Session, owner: Owner, batch_id: str, request: BatchRetryRequest, keyed: KeyedRequest | None
) -> Made:
    """A new batch of the lines that failed, expired or were cancelled, so far; `retry_of` names the old one.

    Raises `NothingToRetry`, `NotFound` for the input file and `IdempotencyKeyReused`.
    """
    old = get(session, owner.tenant_id, batch_id)
    files.get(session, owner.tenant_id, old.input_file_id, field="input_file_id")
    window = request.completion_window or old.completion_window
    values = {
        name: getattr(old, name)
        for name in (
            "input_file_id",
            "endpoint",
            "invalid_lines",
            "priority",
            "user_metadata",
            "output_expires_seconds",
        )
    }
    values |= {
        "completion_window": window,
        "expires_at": _end(session, window, None),
        "retry_of": old.id,
        "state": BatchState.IN_PROGRESS,
        "in_progress_at": func.now(),
    }
    made = _make(session, owner, values, keyed)
    if not made.replayed:
        made.batch.total_lines = _take_over(session, old, made.batch, request.custom_ids)
        tell(session, made.batch, BatchEvent.IN_PROGRESS)
    return made


def hold_waiting(session: Session, batch: Batch, *, held: bool) -> None:
    """Keep the batch's waiting jobs from being claimed, or let them go, ringing for them."""
    session.flush()
    moved = session.execute(
        update(Job)
        .where(Job.id.in_(_waiting(batch)), Job.held.is_(not held))
        .values(held=held)
        .returning(Job.deployment_id, Job.id)
        .execution_options(synchronize_session=False)
    ).all()
    if not held:
        lock_queue(session, batch.tenant_id)
        deployments, released = sorted({row.deployment_id for row in moved}), [row.id for row in moved]
        for deployment_id in deployments:
            post(session, Topic.DOORBELL, {"deployment_id": deployment_id})
        for deployment_id in deployments:
            wake(session, deployment_id, batch.tenant_id, besides=released)


def _waiting(batch: Batch) -> Any:
    """The ids of jobs that wait, locked in their order, so that nobody else who changes them can block this one."""
    return (
        select(Job.id)
        .join(BatchLine, BatchLine.job_id == Job.id)
        .where(BatchLine.batch_id == batch.id, BatchLine.state == LineState.OPEN, Job.state == JobState.QUEUED)
        .order_by(Job.id)
        .with_for_update(of=Job)
        .scalar_subquery()
    )


def _make(session: Session, owner: Owner, values: dict[str, Any], keyed: KeyedRequest | None) -> Made:
    columns = {
        "id": new_id("batch"),
        "tenant_id": owner.tenant_id,
        "api_key_id": owner.key_id,
        "allowed_models": sorted(owner.models) if owner.models is not None else None,
        "idempotency_key": keyed.key if keyed else None,
        "fingerprint": keyed.fingerprint if keyed else None,
    }
    inserted = session.scalars(
        upsert(Batch)
        .values(**columns, **values)
        .on_conflict_do_nothing(index_elements=["tenant_id", "idempotency_key"])
        .returning(Batch)
    ).one_or_none()
    if inserted is None:
        assert keyed is not None
        return Made(_made_before(session, keyed), replayed=True)
    if inserted.state == BatchState.VALIDATING:
        tell(session, inserted, BatchEvent.CREATED)
    return Made(inserted, replayed=False)


def _made_before(session: Session, keyed: KeyedRequest) -> Batch:
    named = select(Batch).where(Batch.tenant_id == keyed.tenant_id, Batch.idempotency_key == keyed.key)
    batch = session.scalars(named).one()
    if batch.fingerprint != keyed.fingerprint:
        raise IdempotencyKeyReused(
            f"this {HEADER} came with another request before, which made {batch.id}; a new request needs a new key",
            field=HEADER,
        )
    return batch


def _take_over(session: Session, old: Batch, new: Batch, custom_ids: Sequence[str] | None) -> int:
    """Give the new batch the old one's lines that may come out otherwise; how many it were."""
    columns = ("line", "custom_id", "start", "length", "echo")
    lines = select(literal(new.id), *(getattr(BatchLine, name) for name in columns)).where(
        BatchLine.batch_id == old.id, BatchLine.state.in_(RETRYABLE)
    )
    if custom_ids is not None:
        lines = lines.where(BatchLine.custom_id.in_(custom_ids))
    taken = session.connection().execute(
        insert(BatchLine).from_select(["batch_id", *columns], lines),
        execution_options={"preserve_rowcount": True},
    )
    if taken.rowcount < (len(set(custom_ids)) if custom_ids is not None else 1):
        which = "not every line that was named" if custom_ids is not None else "no line"
        raise NothingToRetry(f"{which} of {old.id} has failed, expired or been cancelled", field="custom_ids")
    return taken.rowcount


def _one(session: Session, tenant_id: str, batch_id: str, *, locked: bool) -> Batch:
    query = select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
    batch = session.scalars(query.with_for_update() if locked else query).one_or_none()
    if batch is None:
        raise NotFound(f"no batch {batch_id!r}", field="id")
    return batch


def _running(session: Session, tenant_id: str, batch_id: str) -> Batch:
    batch = _one(session, tenant_id, batch_id, locked=True)
    _refuse_ended(batch)
    return batch


def _refuse_ended(batch: Batch) -> None:
    if batch.state not in RUNNING:
        raise BatchFinished(f"{batch.id} is {batch.state}: nothing can be changed of it", status_now=batch.state)


def _end(session: Session, window: str, deadline: datetime | None) -> datetime:
    now = _now(session)
    if deadline is not None and deadline <= now:
        raise ValidationFailed("must lie in the future", field="deadline")
    by_window = now + span_of(window)
    return min(by_window, deadline) if deadline is not None else by_window


def _now(session: Session) -> datetime:
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now
