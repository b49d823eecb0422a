"""The system's own jobs on stored ones: they read another job's text, for nobody's eyes, when nothing else waits.

They belong to the system's tenant and are of the class shadow. No quota, price, tag, key or webhook is theirs. Whoever
made them deletes them once it has what they were for; should their source be deleted before, they go with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import SYSTEM_TENANT_ID, ensure_system_tenant
from penstock.fairness.prefixes import fingerprint
from penstock.jobs.enqueue import enqueue
from penstock.jobs.models import Job
from penstock.jobs.states import JobClass, JobState
from penstock.registry.models import Deployment
from penstock.replay.models import Comparison

TOPS: Final = 20
"""How many of the likeliest tokens are asked for at each position."""


@dataclass(frozen=True, slots=True)
class Internal:
    """One job to be made, of `source` on `deployment`. `purpose` is told in its routing."""

    source: Job
    deployment: Deployment
    kind: str
    input: dict[str, Any]
    params: dict[str, Any]
    purpose: str


def answer_of(job: Job) -> list[int]:
    """The token ids of the job's first choice, as they were generated."""
    choices = (job.output or {}).get("choices") or [{}]
    ids: list[int] = choices[0].get("token_ids") or []
    return ids


def to_score(source: Job, deployment: Deployment, purpose: str) -> Internal:
    """How likely the deployment finds the tokens of the source's answer, and what it finds likeliest in their places.

    The prompt is the source's own, put into tokens as for the source itself, its tools in it; the answer's tokens are
    those that were generated.
    """
    asked = {name: value for name, value in source.input.items() if not name.startswith("continuation")}
    params: dict[str, Any] = {"prompt_logprobs": TOPS}
    if tools := source.params.get("tools"):
        params |= {"tools": tools, "tool_choice": "none", "parallel_tool_calls": True}
    given = asked | {"continuation_token_ids": answer_of(source)}
    return Internal(source, deployment, "score", given, params, purpose)


def to_answer(source: Job, deployment: Deployment, purpose: str) -> Internal:
    """What the deployment answers to the source's request, with its parameters and its seed."""
    return Internal(source, deployment, source.kind, source.input, source.params, purpose)


def submit_internal(session: Session, wanted: Sequence[Internal]) -> list[str]:
    """Queue them; their ids in order. It may lock a counter, so it comes last."""
    if not wanted:
        return []
    tenant_id = ensure_system_tenant(session)
    return [job.id for job in enqueue(session, [_row(each, tenant_id) for each in wanted])]


def end_internal(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Delete those that wait or have ended, and have those that run end at their next step; which are still there.

    A statement for each, and neither waits for a row that somebody holds. No event tells of it: these have no reader.
    """
    ours = (Job.id.in_(job_ids), Job.tenant_id == SYSTEM_TENANT_ID)
    over = or_(Job.finished_at.is_not(None), Job.state == JobState.QUEUED)
    gone = select(Job.id).where(*ours, over).order_by(Job.id).with_for_update(skip_locked=True)
    runs = select(Job.id).where(*ours, Job.state == JobState.RUNNING, Job.cancel_requested_at.is_(None))
    running = runs.order_by(Job.id).with_for_update(skip_locked=True)
    apart = {"synchronize_session": False}
    session.execute(delete(Job).where(Job.id.in_(gone)).execution_options(**apart))
    asked = update(Job).where(Job.id.in_(running)).values(cancel_requested_at=func.now())
    session.execute(asked.execution_options(**apart))
    return set(session.scalars(select(Job.id).where(*ours)))


def delete_internal(session: Session, job_ids: Sequence[str]) -> None:
    """Delete those that have ended. Redis lets their journals go by itself, some seconds after their ends."""
    ended = Job.finished_at.is_not(None)
    gone = delete(Job).where(Job.id.in_(job_ids), Job.tenant_id == SYSTEM_TENANT_ID, ended)
    session.execute(gone.execution_options(synchronize_session=False))


def internal_jobs_of(session: Session, source_ids: Sequence[str]) -> list[str]:
    """The internal jobs that there are on these jobs."""
    named = select(Comparison.reference_job, Comparison.candidate_job, Comparison.free_job)
    rows = session.execute(named.where(Comparison.source_id.in_(source_ids)))
    return [job_id for row in rows for job_id in row if job_id is not None]


def _row(wanted: Internal, tenant_id: str) -> dict[str, Any]:
    source, deployment = wanted.source, wanted.deployment
    scored = len(answer_of(source)) if wanted.kind == "score" else 0
    return {
        "tenant_id": tenant_id,
        "kind": wanted.kind,
        "model": f"{deployment.model_name}:{deployment.model_version}",
        "input": wanted.input,
        "params": wanted.params,
        "seed": source.seed,
        "tags": [],
        "metadata": {},
        "webhook": None,
        "retry_of": None,
        "batch_id": None,
        "batch_line": None,
        "job_class": JobClass.SHADOW.value,
        "priority": 0,
        "deadline": None,
        "prefix": fingerprint(tenant_id, wanted.input, wanted.params.get("tools", ())),
        "token_budget": None,
        "terms": None,
        "api_key_id": None,
        "deployment_id": deployment.id,
        "model_name": deployment.model_name,
        "model_version": deployment.model_version,
        "routing": {"rule": "internal", "purpose": wanted.purpose, "version": deployment.model_version},
        "prompt_tokens": (source.prompt_tokens or 0) + scored,
        "traceparent": None,
    }
