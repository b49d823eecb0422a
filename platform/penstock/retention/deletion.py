"""Jobs are deleted here alone: with all that hangs on them, and their usage added to its days' totals.

The foreign keys take a job's runs, journal, events, feed copies, deliveries with their attempts, idempotency key and
stored response along; only its usage entry holds it, until that is counted. Takes a session, never commits.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from penstock.batches.models import Batch
from penstock.batches.states import BatchState
from penstock.errors import JobInBatch, JobNotFinished, NotFound
from penstock.events.models import FeedEvent
from penstock.events.services import hold_order
from penstock.files.models import File, FileState
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.replay.internal import internal_jobs_of
from penstock.usage.days import roll_up

JOB_DELETED: Final = "job.deleted"
"""The feed's event for a job that its tenant has deleted."""


def delete_jobs(session: Session, journal: Journal, job_ids: Sequence[str]) -> None:
    """Delete jobs that have ended, or that nobody will begin. The caller holds their rows.

    Redis forgets them first: should it be silent nothing is deleted, and what it has forgotten PostgreSQL still has.
    The system's own jobs that read a job's text go with it, whatever they are at.
    """
    readers = internal_jobs_of(session, job_ids)
    journal.forget([*job_ids, *readers])
    roll_up(session, job_ids)
    for ids in (job_ids, readers):  # a job's comparison goes with it, before its readers: others lock in that order
        session.execute(delete(Job).where(Job.id.in_(ids)).execution_options(synchronize_session=False))


def delete_job(session: Session, journal: Journal, tenant_id: str, job_id: str) -> None:
    """Delete the tenant's finished job, and say so in its feed.

    Raises `NotFound`, `JobNotFinished`, and `JobInBatch` while a batch needs it or has files that hold it as well.
    """
    wanted = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    job = session.scalars(wanted.with_for_update()).one_or_none()
    if job is None:
        raise NotFound(f"no job {job_id!r}", field="id")
    if not JobState(job.state).final:
        raise JobNotFinished(f"{job_id} is still {job.state}: cancel it, or wait for its end", status_now=job.state)
    _refuse_held_by_batch(session, job)
    hold_order(session)  # no event of the job gets its place while it goes
    delete_jobs(session, journal, [job_id])
    told = {"tenant_id": tenant_id, "type": JOB_DELETED, "job_id": job_id, "data": {"id": job_id}}
    session.execute(insert(FeedEvent), told)


def _refuse_held_by_batch(session: Session, job: Job) -> None:
    batch = session.get(Batch, job.batch_id) if job.batch_id is not None else None
    if batch is None:
        return
    if not BatchState(batch.state).final:
        raise JobInBatch(f"{job.id} is a line of {batch.id}, which has not ended", batch=batch.id, files=[])
    ids = [batch.input_file_id, batch.output_file_id, batch.error_file_id]
    there = select(File.id).where(File.id.in_(ids), File.state == FileState.READY).order_by(File.id)
    if files := list(session.scalars(there)):
        names = ", ".join(files)
        raise JobInBatch(f"{job.id} stands in files of {batch.id}: delete {names} first", batch=batch.id, files=files)
