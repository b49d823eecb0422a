"""What the web process does with bulk operations: begin, read, cancel. Takes a session, never commits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.auth.models import Tenant
from penstock.bulk.models import BulkItem, BulkOperation
from penstock.bulk.states import OPERATORS_ACTIONS, UNFINISHED, BulkAction, BulkState, ItemState
from penstock.bulk.telling import BulkEvent, tell
from penstock.errors import BulkOperationFinished, IdempotencyKeyReused, NotFound, TooManyBulkOperations
from penstock.idempotency.services import HEADER, KeyedRequest
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.problems import refuse_field

MOST_UNFINISHED: Final = 10
"""Operations that one tenant may have going: each walks its jobs, however often they are asked for."""
_FAILURES_TOLD: Final = 100


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be done to what, and for whom: `models` are those that the key may use, None is all.

    What it is about are the jobs `targets`, or where there are none, all that the filter names.
    """

    action: BulkAction
    filter: dict[str, Any]
    actor: Actor
    api_key_id: str | None
    models: Collection[str] | None = field(default=None)
    targets: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """An operation. `replayed` when an earlier request with the same key began it."""

    operation: BulkOperation
    replayed: bool


def begin(session: Session, tenant_id: str, wish: Wish, keyed: KeyedRequest | None) -> Begun:
    """An operation that control processes go about.

    Raises `TooManyBulkOperations` and `IdempotencyKeyReused`, and `ValidationFailed` for a target that there is not.
    """
    # One at a time of each tenant, so that two together do not pass the limit.
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
    if keyed is not None and (before := _begun_before(session, keyed)) is not None:
        return Begun(before, replayed=True)
    _refuse_too_many(session, tenant_id)
    _refuse_unknown(session, tenant_id, wish.targets)
    operation = _created(session, tenant_id, wish, keyed)
    if wish.targets:
        session.execute(insert(BulkItem), [{"operation_id": operation.id, "target_id": id_} for id_ in wish.targets])
    about = {"jobs": len(wish.targets)} if wish.targets else {"filter": wish.filter}
    details = {"action": wish.action.value} | about
    record(session, wish.actor, Action.BULK_CREATED, tenant_id=tenant_id, target=operation.id, details=details)
    tell(session, operation, BulkEvent.CREATED)
    if wish.targets:  # nothing is to be gathered
        operation.state = BulkState.RUNNING
        tell(session, operation, BulkEvent.RUNNING)
    return Begun(operation, replayed=False)


def get(session: Session, tenant_id: str, operation_id: str, *, operator: bool, lock: bool = False) -> BulkOperation:
    """The tenant's operation. Raises `NotFound`, also where only operators see it and this is none."""
    query = select(BulkOperation).where(BulkOperation.id == operation_id, *_seen_by(tenant_id, operator))
    operation = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if operation is None:
        raise NotFound(f"no bulk operation {operation_id!r}", field="id")
    return operation


def failures(session: Session, operation_id: str) -> Sequence[BulkItem]:
    """Its first items that failed, by id."""
    failed = select(BulkItem).where(BulkItem.operation_id == operation_id, BulkItem.state == ItemState.FAILED)
    return session.scalars(failed.order_by(BulkItem.target_id).limit(_FAILURES_TOLD)).all()


def list_operations(
    session: Session, tenant_id: str, *, operator: bool, limit: int, before: str | None = None
) -> tuple[Sequence[BulkOperation], str | None]:
    """A page of the tenant's operations, newest first, and the cursor of the next page if there is one."""
    query = select(BulkOperation).where(*_seen_by(tenant_id, operator))
    if before is not None:
        query = query.where(BulkOperation.id < before)
    found = session.scalars(query.order_by(BulkOperation.id.desc()).limit(limit + 1)).all()
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def cancel(session: Session, tenant_id: str, operation_id: str, actor: Actor, *, operator: bool) -> BulkOperation:
    """Do no more of it; what was done stays. Asking again changes nothing. Raises `BulkOperationFinished`."""
    operation = get(session, tenant_id, operation_id, operator=operator, lock=True)
    if operation.state == BulkState.COMPLETED:
        raise BulkOperationFinished(f"{operation_id} is completed: all of it is done", status_now=operation.state)
    if operation.state != BulkState.CANCELLED:
        now = session.scalars(select(func.clock_timestamp())).one()
        operation.state, operation.blocker, operation.finished_at = BulkState.CANCELLED, None, now
        record(session, actor, Action.BULK_CANCELLED, tenant_id=tenant_id, target=operation_id, details={})
        tell(session, operation, BulkEvent.CANCELLED)
    return operation


def actor_document(actor: Actor) -> dict[str, Any]:
    """Who acts, as an operation keeps it."""
    return {"kind": actor.kind.value, "id": actor.id, "name": actor.name, "address": actor.address}


def _created(session: Session, tenant_id: str, wish: Wish, keyed: KeyedRequest | None) -> BulkOperation:
    row = insert(BulkOperation).values(
        id=new_id("bulk"),
        tenant_id=tenant_id,
        action=wish.action,
        filter=wish.filter,
        actor=actor_document(wish.actor),
        api_key_id=wish.api_key_id,
        allowed_models=sorted(wish.models) if wish.models is not None else None,
        total=len(wish.targets),
        idempotency_key=keyed.key if keyed else None,
        fingerprint=keyed.fingerprint if keyed else None,
    )
    return session.scalars(row.returning(BulkOperation)).one()


def _refuse_unknown(session: Session, tenant_id: str, job_ids: Sequence[str]) -> None:
    known = set(session.scalars(select(Job.id).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))))
    unknown = next((job_id for job_id in job_ids if job_id not in known), None)
    if unknown is not None:
        raise refuse_field("ids", f"there is no job {unknown!r}", "name jobs that are there")


def _seen_by(tenant_id: str, operator: bool) -> list[Any]:
    own = BulkOperation.tenant_id == tenant_id
    return [own] if operator else [own, BulkOperation.action.not_in(OPERATORS_ACTIONS)]


def _begun_before(session: Session, keyed: KeyedRequest) -> BulkOperation | None:
    named = select(BulkOperation).where(
        BulkOperation.tenant_id == keyed.tenant_id, BulkOperation.idempotency_key == keyed.key
    )
    operation = session.scalars(named).one_or_none()
    if operation is not None and operation.fingerprint != keyed.fingerprint:
        raise IdempotencyKeyReused(
            f"this {HEADER} came with another request before, which made {operation.id}; a new request needs a new key",
            field=HEADER,
        )
    return operation


def _refuse_too_many(session: Session, tenant_id: str) -> None:
    unfinished = select(func.count()).where(BulkOperation.tenant_id == tenant_id, BulkOperation.state.in_(UNFINISHED))
    if (session.scalar(unfinished) or 0) >= MOST_UNFINISHED:
        raise TooManyBulkOperations(f"{MOST_UNFINISHED} bulk operations of this tenant go on; wait, or cancel one")
