"""What a bulk action must know: which targets there are, and what is done to one of them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.batches.workshop import Workshop
from penstock.bulk.models import BulkOperation
from penstock.bulk.states import BulkAction
from penstock.errors import ModelNotAllowed
from penstock.jobs import services as jobs
from penstock.jobs.filters import matching_ids
from penstock.jobs.locks import lock_budgets, lock_queue
from penstock.jobs.models import Job
from penstock.jobs.queries import JobSelection
from penstock.problems import explain_validation


class Work(Protocol):
    """One action. All of it runs in transactions that hold the operation's row."""

    @property
    def at_once(self) -> int:
        """How many targets one transaction takes: so long are the rows locked that they touch."""

    def gather(self, session: Session, operation: BulkOperation, limit: int) -> Sequence[str]:
        """The next targets, in falling order, behind `gathered_to`."""

    def reach(self, session: Session, operation: BulkOperation, targets: Sequence[str], /) -> Sequence[str]:
        """Those of the targets that can be acted on now; what they share is locked in the order of `jobs.locks`."""

    def act(self, workshop: Workshop, session: Session, operation: BulkOperation, target: str, /) -> str | None:
        """Do it to one target, as a call for that one alone would; the id of what came of it.

        Raises what such a call raises, having changed nothing then.
        """


class CancelJobs:
    """Cancels jobs of the tenant."""

    at_once = 50

    def gather(self, session: Session, operation: BulkOperation, limit: int) -> Sequence[str]:
        return _matching(session, operation, limit)

    def reach(self, session: Session, operation: BulkOperation, targets: Sequence[str]) -> Sequence[str]:
        # All before the first budget, in their order, as others who end jobs; what is locked waits for its next turn.
        locked = select(Job.id).where(Job.id.in_(targets)).order_by(Job.id).with_for_update(skip_locked=True)
        free = set(session.scalars(locked))
        lock_budgets(session, [operation.tenant_id])
        there = set(session.scalars(select(Job.id).where(Job.id.in_(targets)))) if len(free) < len(targets) else free
        return [target for target in targets if target in free or target not in there]

    def act(self, _workshop: Workshop, session: Session, operation: BulkOperation, target: str) -> str | None:
        return jobs.cancel(session, operation.tenant_id, target).id


class ReplayJobs:
    """Submits the requests of finished jobs again, as the key that asked for it."""

    at_once = 10

    def gather(self, session: Session, operation: BulkOperation, limit: int) -> Sequence[str]:
        return _matching(session, operation, limit)

    def reach(self, session: Session, operation: BulkOperation, targets: Sequence[str]) -> Sequence[str]:
        lock_queue(session, operation.tenant_id)
        lock_budgets(session, [operation.tenant_id])
        return targets

    def act(self, workshop: Workshop, session: Session, operation: BulkOperation, target: str) -> str | None:
        allowed = operation.allowed_models
        name = jobs.get(session, operation.tenant_id, target).model_name
        if allowed is not None and name not in allowed:
            raise ModelNotAllowed(f"this key may use {', '.join(allowed)}, and not {name!r}", field="model")
        return replay(workshop, session, operation.tenant_id, target, operation.api_key_id)


def replay(workshop: Workshop, session: Session, tenant_id: str, job_id: str, api_key_id: str | None) -> str:
    """Submit a finished job's request again within its tenant's limits; the new job's id. A refusal changes nothing."""
    limits = workshop.quotas.job_limits(tenant_id, limits_of(session.get_one(Tenant, tenant_id)))
    try:
        with session.begin_nested():
            return jobs.retry(
                session, tenant_id, job_id, prompts=workshop.prompts, limits=limits, api_key_id=api_key_id
            ).id
    except ValidationError as error:  # the rules have changed since it was submitted
        raise explain_validation(error) from None


def _matching(session: Session, operation: BulkOperation, limit: int) -> Sequence[str]:
    """Jobs that were there when the operation began: those that a replay makes are none of its own."""
    asked: dict[str, Any] = operation.filter
    selection = JobSelection.model_validate_strings(asked)
    until = min(selection.created_before or datetime.max.replace(tzinfo=UTC), operation.created_at)
    wanted = selection.model_copy(update={"created_before": until}).as_filter()
    query = matching_ids(operation.tenant_id, wanted, limit=limit, before=operation.gathered_to)
    return session.scalars(query).all()


JOB_WORKS: Final[Mapping[BulkAction, Work]] = {BulkAction.CANCEL: CancelJobs(), BulkAction.REPLAY: ReplayJobs()}
