"""Taking jobs in: each is judged against its model, its tenant's limits and its price, then all are written at once."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from penstock.errors import QuotaExceeded, ValidationFailed
from penstock.fairness.prefixes import fingerprint
from penstock.ids import ascending_ids
from penstock.jobs.asked import Asked as Asked
from penstock.jobs.asked import PromptCounter as PromptCounter
from penstock.jobs.choosing import Chooser
from penstock.jobs.crowding import Crowding
from penstock.jobs.enqueue import enqueue
from penstock.jobs.locks import lock_queue
from penstock.jobs.models import Job
from penstock.jobs.schemas import JobRequest
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.rollouts.assignment import Who
from penstock.routing.services import RoutingDecision
from penstock.usage.budgets import agree
from penstock.usage.terms import Terms

_MOST_AT_ONCE: Final = 256  # submits of one tenant that may be in flight together
_QUEUE_RETRY_SECONDS: Final = 5


def _any_number(tokens: int) -> None:
    """Counts nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may have. `admit_tokens` counts what a job may use, or raises `QuotaExceeded`.

    `crowding` is what the process remembers of how many jobs wait.
    """

    max_queued_jobs: int
    admit_tokens: Callable[[int], None] = _any_number
    crowding: Crowding = field(default_factory=Crowding)


@dataclass(frozen=True, slots=True)
class Place:
    """The line of a batch that a job serves."""

    batch_id: str
    line: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job comes from: the key that submits it, its trace, the job that it retries, the line that it serves."""

    api_key_id: str | None = None
    traceparent: str | None = None
    retry_of: str | None = None
    place: Place | None = None


class Intake:
    """Takes in jobs of one tenant in one transaction: `admit` each, which reads and reserves, then `write` them all.

    A job that is refused leaves nothing behind: a reservation is the last thing that it can be refused for. What the
    database says of models, prices and the time is asked once, and holds for all of them.
    """

    def __init__(self, session: Session, tenant_id: str, *, prompts: PromptCounter, limits: Limits) -> None:
        self._session, self._tenant_id = session, tenant_id
        self._prompts, self._limits = prompts, limits
        self._versions = Chooser(session, tenant_id, prompts)
        self._ids = ascending_ids("job")
        self._rows: list[dict[str, Any]] = []
        self._assigned: list[dict[str, Any]] = []

    def admit(self, asked: Asked, origin: Origin) -> None:
        """Judge a job, and reserve what it may cost."""
        self._refuse_past(asked.request.deadline)
        self._refuse_full()
        who = Who(next(self._ids), self._tenant_id, asked.request.metadata.get("user"), origin.api_key_id)
        decision = self._versions.choose(asked, who)
        prompt_tokens = asked.count(self._prompts, decision.deployment)
        terms = self._agree(asked, decision.deployment, prompt_tokens)
        row = self._row(asked, origin, decision)
        agreed = {"prompt_tokens": prompt_tokens, "terms": terms.document if terms is not None else None}
        self._rows.append(row | agreed | {"id": who.job_id})
        if decision.assignment is not None:
            self._assigned.append(decision.assignment.row)

    def write(self) -> list[Job]:
        """Write what was admitted, in its order. The last thing of a transaction: it may lock a counter."""
        rows, self._rows = self._rows, []
        assigned, self._assigned = self._assigned, []
        return enqueue(self._session, rows, assigned)

    def _agree(self, asked: Asked, deployment: Deployment, prompt_tokens: int) -> Terms | None:
        most = most_tokens(asked.request, prompt_tokens, deployment.context_length)
        self._limits.admit_tokens(most)
        return agree(
            self._session,
            self._tenant_id,
            deployment,
            self._versions.offer(deployment),
            asked.request.budget,
            prompt_tokens=prompt_tokens,
            output_tokens=most - prompt_tokens,
        )

    def _row(self, asked: Asked, origin: Origin, decision: RoutingDecision) -> dict[str, Any]:
        request, deployment, place = asked.request, decision.deployment, origin.place
        return {
            "tenant_id": self._tenant_id,
            "kind": request.kind,
            "model": request.model,
            "input": asked.input,
            "params": asked.params,
            "seed": _draw_seed() if request.params.seed is None else request.params.seed,
            "tags": request.tags,
            "metadata": request.metadata,
            "webhook": request.webhook.model_dump() if request.webhook else None,
            "retry_of": origin.retry_of,
            "batch_id": place.batch_id if place else None,
            "batch_line": place.line if place else None,
            "job_class": request.class_rank.value,
            "priority": request.priority,
            "deadline": request.deadline,
            "prefix": fingerprint(self._tenant_id, asked.input, asked.params["tools"]),
            "token_budget": request.budget.tokens if request.budget else None,
            "api_key_id": origin.api_key_id,
            "deployment_id": deployment.id,
            "model_name": deployment.model_name,
            "model_version": deployment.model_version,
            "routing": decision.reason,
            "traceparent": origin.traceparent,
        }

    def _refuse_past(self, deadline: datetime | None) -> None:
        if deadline is not None and deadline <= self._now:
            raise ValidationFailed("must lie in the future", field="deadline")

    @cached_property
    def _now(self) -> datetime:
        """When the transaction began, by the database's clock."""
        return self._session.scalars(select(func.now())).one()

    def _refuse_full(self) -> None:
        """Raise `QuotaExceeded` when as many of the tenant's jobs wait as may."""
        most, crowding = self._limits.max_queued_jobs, self._limits.crowding
        if crowding.knows_room(self._tenant_id, most):
            return
        far = most - _MOST_AT_ONCE - len(self._rows)
        if far > 0 and crowding.look(self._tenant_id, lambda: self._count(far)) < far:
            return
        # So near the limit submits go one at a time: of many that see one free place one may have it.
        lock_queue(self._session, self._tenant_id)
        if self._count(most) + len(self._rows) >= most:
            raise QuotaExceeded(
                f"the limit of {most} waiting jobs is reached", limit=most, retry_after=_QUEUE_RETRY_SECONDS
            )

    def _count(self, at_most: int) -> int:
        """How many of the tenant's jobs wait, counted no further than `at_most`."""
        mine = select(true()).where(Job.tenant_id == self._tenant_id, Job.state == JobState.QUEUED)
        return self._session.scalar(select(func.count()).select_from(mine.limit(at_most).subquery())) or 0


def most_tokens(request: JobRequest, prompt_tokens: int, context_length: int) -> int:
    """What the job may use: its prompt, and each choice up to `max_tokens` or the context's end, within its budget."""
    if request.kind == "score":
        return prompt_tokens
    each = request.params.max_tokens or context_length - prompt_tokens
    most = prompt_tokens + each * request.params.choices
    return min(most, request.budget.tokens) if request.budget and request.budget.tokens else most


def _draw_seed() -> int:
    """53 random bits: every JSON reader keeps such a number exactly, so that it can be asked for again."""
    return secrets.randbits(53)
