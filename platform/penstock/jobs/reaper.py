"""The reaper: takes jobs back from holders that fell silent, and ends jobs whose deadline passed.

Runs in every control and worker process, without a lock: small batches, SKIP LOCKED.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Finish, Held, finish, hand_back, load_checkpoint
from penstock.jobs.locks import lock_budgets
from penstock.jobs.models import Job
from penstock.jobs.output import assemble_output, count_tokens
from penstock.jobs.states import JobState, RunOutcome
from penstock.usage import accounting

_BATCH: Final = 50

ReadJournal = Callable[[Held], Sequence[JournalEntry]]
"""Shuts the silent holder out of the job's journal and returns what it wrote (empty when Redis has none)."""


def database_uptime_seconds(session: Session) -> float:
    """How long PostgreSQL has run: leases that ran out while it was down say nothing about their holders."""
    seconds = session.scalar(text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"))
    return float(seconds or 0.0)


def reap(session: Session, read_journal: ReadJournal, *, max_own_crashes: int) -> list[Job]:
    """Take back up to 50 jobs whose lease ran out: cancelled if that was asked, expired if late, else queued again."""
    lost = session.scalars(
        select(Job)
        .where(Job.state == JobState.RUNNING, Job.lease_expires_at < func.clock_timestamp())
        .order_by(Job.lease_expires_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    by_counter = sorted(lost, key=lambda job: (job.tenant_id, job.deployment_id, job.id))
    ends = [_end(session, job, read_journal) for job in by_counter]  # asks Redis: no budget is locked yet
    lock_budgets(session, {job.tenant_id for job, end in zip(by_counter, ends, strict=True) if end is not None})
    return [_take_back(session, job, end, max_own_crashes) for job, end in zip(by_counter, ends, strict=True)]


def expire_waiting(session: Session) -> list[Job]:
    """End up to 50 waiting jobs whose deadline has passed."""
    late = (
        select(Job.id, Job.tenant_id)
        .where(Job.state == JobState.QUEUED, Job.deadline <= func.now())
        .order_by(Job.deadline)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    chosen = session.execute(late).all()
    lock_budgets(session, {row.tenant_id for row in chosen})
    expired = []
    for job_id, _ in chosen:
        kept = load_checkpoint(session, job_id)
        expired.append(_expire(session, job_id, kept))
    record(session, [Happening(job, EventType.EXPIRED, {"output_tokens": job.output_tokens}) for job in expired])
    return expired


def _end(session: Session, job: Job, read_journal: ReadJournal) -> Finish | None:
    """How a job ends that was cancelled or is late; None for one that goes on."""
    late = job.deadline is not None and session.scalar(select(Job.deadline <= func.now()).where(Job.id == job.id))
    if job.cancel_requested_at is None and not late:
        return None
    entries = max(read_journal(Held(job.id, job.fence)), load_checkpoint(session, job.id), key=len)
    state = JobState.CANCELLED if job.cancel_requested_at is not None else JobState.EXPIRED
    return Finish(state, entries, job.prompt_tokens or 0, job.cached_tokens, outcome=RunOutcome.LEASE_LOST)


def _take_back(session: Session, job: Job, end: Finish | None, max_own_crashes: int) -> Job:
    held = Held(job.id, job.fence)
    if end is not None:
        return finish(session, held, end)
    reason = f"worker {job.lease_holder} fell silent"
    return hand_back(session, held, RunOutcome.LEASE_LOST, reason, max_own_crashes=max_own_crashes)


def _expire(session: Session, job_id: str, kept: Sequence[JournalEntry]) -> Job:
    output: Any = assemble_output(kept) if kept else None
    tally = accounting.tally_waiting(session, job_id, JobState.EXPIRED, count_tokens(kept))
    expired = session.scalars(
        update(Job)
        .where(Job.id == job_id)
        .values(
            state=JobState.EXPIRED,
            finished_at=func.now(),
            last_event=Job.last_event + 1,
            output=output,
            output_tokens=count_tokens(kept),
            account=tally.account if tally is not None else None,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    ).one()
    accounting.close_waiting(session, expired, tally)
    return expired
