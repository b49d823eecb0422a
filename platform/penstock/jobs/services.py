"""What the web process does with jobs: submit, read, list, cancel, retry. Takes a session, never commits."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from penstock.errors import (
    JobAlreadyFinished,
    JobNotFinished,
    NotFound,
    QuotaExceeded,
    ValidationFailed,
)
from penstock.fairness.counters import wake
from penstock.fairness.prefixes import fingerprint
from penstock.ids import new_id
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.filters import JobFilter, matching_ids
from penstock.jobs.fitness import Vocabulary, refuse_unfit
from penstock.jobs.lease import load_checkpoint
from penstock.jobs.locks import lock_queue
from penstock.jobs.models import Job
from penstock.jobs.output import assemble_output, count_tokens
from penstock.jobs.presentation import budget_of, params_of
from penstock.jobs.schemas import JobRequest
from penstock.jobs.states import JobState
from penstock.jobs.structure import WritesCalls, structure_of
from penstock.outbox.services import Topic, post
from penstock.registry.models import Deployment
from penstock.routing.services import choose
from penstock.usage import accounting
from penstock.usage.budgets import agree

_MOST_AT_ONCE: Final = 256  # submits of one tenant that may be in flight together
_QUEUE_RETRY_SECONDS: Final = 5


class PromptCounter(Protocol):
    """Knows the deployments' tokens: those of a job's input, and those that its parameters may name."""

    def count(self, deployment: Deployment, job_input: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> int:
        """Tokens of the whole prompt, as tokenizer and chat template make them."""
        ...

    def get(self, deployment: Deployment) -> WritesCalls:
        """The model, as far as it can call tools."""
        ...

    def vocabulary(self, deployment: Deployment) -> Vocabulary:
        """The tokens that there are."""
        ...


def _any_number(tokens: int) -> None:
    """Counts nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may have. `admit_tokens` counts what a job may use, or raises `QuotaExceeded`."""

    max_queued_jobs: int
    admit_tokens: Callable[[int], None] = _any_number


@dataclass(frozen=True, slots=True)
class Place:
    """The line of a batch that a job serves."""

    batch_id: str
    line: int


def submit(
    session: Session,
    *,
    tenant_id: str,
    request: JobRequest,
    prompts: PromptCounter,
    limits: Limits,
    traceparent: str | None = None,
    retry_of: str | None = None,
    place: Place | None = None,
    api_key_id: str | None = None,
) -> Job:
    """Queue a job: route it, check that it fits, write its row, its first event and its doorbell."""
    _refuse_past_deadline(session, request.deadline)
    _check_quota(session, tenant_id, limits)
    decision = choose(session, request.model)
    params = request.stored_params()
    prompt_tokens = prompts.count(decision.deployment, request.stored_input(), params["tools"])
    refuse_unfit(
        request,
        prompt_tokens=prompt_tokens,
        context_length=decision.deployment.context_length,
        vocabulary=lambda: prompts.vocabulary(decision.deployment),
        structure=lambda: structure_of(params, prompts.get(decision.deployment)),
    )
    most = most_tokens(request, prompt_tokens, decision.deployment.context_length)
    limits.admit_tokens(most)
    terms = agree(
        session,
        tenant_id,
        decision.deployment,
        request.budget,
        prompt_tokens=prompt_tokens,
        output_tokens=most - prompt_tokens,
    )
    job = session.scalars(
        insert(Job)
        .values(
            id=new_id("job"),
            tenant_id=tenant_id,
            kind=request.kind,
            model=request.model,
            input=request.stored_input(),
            params=params,
            seed=_draw_seed() if request.params.seed is None else request.params.seed,
            tags=request.tags,
            user_metadata=request.metadata,
            webhook=request.webhook.model_dump() if request.webhook else None,
            retry_of=retry_of,
            batch_id=place.batch_id if place else None,
            batch_line=place.line if place else None,
            job_class=request.class_rank.value,
            priority=request.priority,
            deadline=request.deadline,
            prefix=fingerprint(tenant_id, request.stored_input(), params["tools"]),
            token_budget=request.budget.tokens if request.budget else None,
            terms=terms.document if terms is not None else None,
            api_key_id=api_key_id,
            deployment_id=decision.deployment.id,
            model_name=decision.deployment.model_name,
            model_version=decision.deployment.model_version,
            routing=decision.reason,
            prompt_tokens=prompt_tokens,
            last_event=1,
            traceparent=traceparent,
        )
        .returning(Job)
    ).one()
    record(session, [Happening(job, EventType.QUEUED, {"model_version": job.model_version})])
    post(session, Topic.DOORBELL, {"deployment_id": job.deployment_id, "jobs": 1})
    wake(session, job.deployment_id, tenant_id, besides=[job.id])  # the last: it may lock a counter
    return job


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """The tenant's job. Raises `NotFound`, also for another tenant's."""
    job = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id!r}", field="id")
    return job


def count_waiting(session: Session, tenant_id: str) -> int:
    """How many of the tenant's jobs wait."""
    waiting = select(func.count()).where(Job.tenant_id == tenant_id, Job.state == JobState.QUEUED)
    return session.scalar(waiting) or 0


def most_tokens(request: JobRequest, prompt_tokens: int, context_length: int) -> int:
    """What the job may use: its prompt, and each choice up to `max_tokens` or the context's end, within its budget."""
    if request.kind == "score":
        return prompt_tokens
    each = request.params.max_tokens or context_length - prompt_tokens
    most = prompt_tokens + each * request.params.choices
    return min(most, request.budget.tokens) if request.budget and request.budget.tokens else most


def list_jobs(
    session: Session, tenant_id: str, wanted: JobFilter, *, limit: int, before: str | None = None
) -> tuple[list[Job], str | None]:
    """A page of the tenant's jobs, newest first, and the cursor of the next page (a job's id) if there is one."""
    found = matching_ids(tenant_id, wanted, limit=limit + 1, before=before).subquery()
    jobs = list(session.scalars(select(Job).join(found, Job.id == found.c.id).order_by(Job.id.desc())))
    return jobs[:limit], jobs[limit - 1].id if len(jobs) > limit else None


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel: at once while the job waits; while it runs, its holder stops it at the next token, keeping its output.

    Asking again changes nothing. Raises `JobAlreadyFinished` once the state is final.
    """
    job = session.scalars(
        select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id).with_for_update()
    ).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id!r}", field="id")
    if JobState(job.state).final:
        raise JobAlreadyFinished(f"{job_id} is {job.state} already", status_now=job.state)
    if job.state == JobState.QUEUED:
        return _cancel_waiting(session, job)
    return job if job.cancel_requested_at is not None else _request_cancel(session, job)


def retry(
    session: Session,
    tenant_id: str,
    job_id: str,
    *,
    prompts: PromptCounter,
    limits: Limits,
    traceparent: str | None = None,
    api_key_id: str | None = None,
) -> Job:
    """A new job with the old one's request, its seed included, linked by `retry_of`."""
    job = get(session, tenant_id, job_id)
    if not JobState(job.state).final:
        raise JobNotFinished(f"{job_id} is still {job.state}: cancel it, or wait for its end", status_now=job.state)
    request = JobRequest.model_validate(
        {
            "kind": job.kind,
            "model": job.model,
            "input": job.input,
            "params": params_of(job),
            "class": "interactive" if job.job_class == 0 else "batch",
            "priority": job.priority,
            "budget": budget_of(job),
            "webhook": job.webhook,
            "tags": job.tags,
            "metadata": job.user_metadata,
        }
    )
    return submit(
        session,
        tenant_id=tenant_id,
        request=request,
        prompts=prompts,
        limits=limits,
        traceparent=traceparent,
        retry_of=job.id,
        api_key_id=api_key_id,
    )


def _draw_seed() -> int:
    """53 random bits: every JSON reader keeps such a number exactly, so that it can be asked for again."""
    return secrets.randbits(53)


def _cancel_waiting(session: Session, job: Job) -> Job:
    kept = load_checkpoint(session, job.id)
    tally = accounting.tally_waiting(session, job.id, JobState.CANCELLED, count_tokens(kept))
    cancelled = _update(
        session,
        job.id,
        state=JobState.CANCELLED,
        cancel_requested_at=func.now(),
        finished_at=func.now(),
        output=assemble_output(kept) if kept else None,
        output_tokens=count_tokens(kept),
        account=tally.account if tally is not None else None,
    )
    accounting.close_waiting(session, cancelled, tally)
    record(session, [Happening(cancelled, EventType.CANCELLED, {"output_tokens": cancelled.output_tokens})])
    return cancelled


def _request_cancel(session: Session, job: Job) -> Job:
    asked = _update(session, job.id, cancel_requested_at=func.now())
    record(session, [Happening(asked, EventType.CANCEL_REQUESTED, {})])
    return asked


def _update(session: Session, job_id: str, **values: Any) -> Job:
    return session.scalars(
        update(Job)
        .where(Job.id == job_id)
        .values(last_event=Job.last_event + 1, **values)
        .returning(Job)
        .execution_options(populate_existing=True)
    ).one()


def _check_quota(session: Session, tenant_id: str, limits: Limits) -> None:
    most = limits.max_queued_jobs
    if not _at_least_wait(session, tenant_id, most - _MOST_AT_ONCE):
        return
    # So near the limit submits go one at a time: of many that see one free place one may have it.
    lock_queue(session, tenant_id)
    if _at_least_wait(session, tenant_id, most):
        raise QuotaExceeded(
            f"the limit of {most} waiting jobs is reached", limit=most, retry_after=_QUEUE_RETRY_SECONDS
        )


def _at_least_wait(session: Session, tenant_id: str, count: int) -> bool:
    if count <= 0:
        return True
    waiting = select(Job.id).where(Job.tenant_id == tenant_id, Job.state == JobState.QUEUED)
    return session.scalar(waiting.offset(count - 1).limit(1)) is not None


def _refuse_past_deadline(session: Session, deadline: datetime | None) -> None:
    if deadline is not None and deadline <= session.scalars(select(func.now())).one():
        raise ValidationFailed("must lie in the future", field="deadline")
