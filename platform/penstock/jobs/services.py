"""What the web process does with jobs: submit, read, list, cancel, retry. Takes a session, never commits."""

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from penstock.errors import JobAlreadyFinished, JobNotFinished, NotFound
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.filters import JobFilter, matching_ids
from penstock.jobs.intake import Asked as Asked
from penstock.jobs.intake import Intake as Intake
from penstock.jobs.intake import Limits as Limits
from penstock.jobs.intake import Origin as Origin
from penstock.jobs.intake import Place as Place
from penstock.jobs.intake import PromptCounter as PromptCounter
from penstock.jobs.lease import load_checkpoint
from penstock.jobs.models import Job
from penstock.jobs.output import assemble_output, count_tokens
from penstock.jobs.presentation import budget_of, params_of
from penstock.jobs.schemas import JobRequest
from penstock.jobs.states import JobState
from penstock.registry.models import LANE_ID
from penstock.usage import accounting


def submit(
    session: Session,
    *,
    tenant_id: str,
    asked: Asked,
    prompts: PromptCounter,
    limits: Limits,
    traceparent: str | None = None,
    retry_of: str | None = None,
    api_key_id: str | None = None,
) -> Job:
    """Queue a job: route it, check that it fits, write its row, its first event and its doorbell."""
    intake = Intake(session, tenant_id, prompts=prompts, limits=limits)
    intake.admit(asked, Origin(api_key_id, traceparent, retry_of))
    return intake.write()[0]


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
    if job.deployment_id == LANE_ID:
        return _retry_on_files(session, job, limits, traceparent, api_key_id)
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
        asked=Asked.of(request),
        prompts=prompts,
        limits=limits,
        traceparent=traceparent,
        retry_of=job.id,
        api_key_id=api_key_id,
    )


def _retry_on_files(session: Session, job: Job, limits: Limits, traceparent: str | None, api_key_id: str | None) -> Job:
    from penstock.compressions.services import Submission
    from penstock.compressions.services import retry as retry_on_files  # here, for it stands upon jobs

    return retry_on_files(session, job, Submission(job.tenant_id, limits.max_queued_jobs, traceparent, api_key_id))


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
