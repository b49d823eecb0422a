"""Everything that can be said about one job: its document, its place in the queue, its history, its output so far."""

from collections.abc import Iterable
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.jobs import services as jobs
from penstock.jobs.events import events_after
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job, JobRun
from penstock.jobs.output import assemble_output
from penstock.jobs.presentation import job_document
from penstock.jobs.standing import standing_of
from penstock.jobs.stream import event_document, kept_entries
from penstock.registry.models import LANE_ID


def describe(session: Session, tenant_id: str, job_id: str) -> dict[str, Any]:
    """The tenant's job as `JobDetail` shows it, its output as of the last checkpoint. Raises `NotFound`."""
    job = jobs.get(session, tenant_id, job_id)
    document = job_document(job)
    if job.output is None and job.runs and job.deployment_id != LANE_ID:
        document["output"] = assemble_output(kept_entries(session, job.id))
    return document | {
        "queue": _queue(session, job),
        "timeline": [event_document(event) for event in events_after(session, job.id, 0)],
        "run_history": _run_history(session, job),
    }


def with_newest_output(document: dict[str, Any], journal: Journal) -> dict[str, Any]:
    """The document of an unfinished job with the output that Redis has, or as it is where Redis cannot say.

    Asked outside of any transaction, so that a silent Redis holds up no row.
    """
    if document["output"] is None or document["finished_at"] is not None:
        return document
    try:
        entries = journal.read(document["id"])
    except RedisError:
        return document
    return document | {"output": assemble_output(entries)} if entries else document


def _queue(session: Session, job: Job) -> dict[str, Any] | None:
    standing = standing_of(session, job)
    return standing.document if standing is not None else None


def _run_history(session: Session, job: Job) -> list[dict[str, Any]]:
    return run_documents(session.scalars(select(JobRun).where(JobRun.job_id == job.id).order_by(JobRun.fence)))


def run_documents(runs: Iterable[JobRun]) -> list[dict[str, Any]]:
    """Each as `RunDocument`, numbered in their order."""
    return [
        {
            "number": number,
            "worker": run.worker_id,
            "started_at": iso(run.started_at),
            "resumed_at_position": run.resumed_at_position,
            "ended_at": iso(run.ended_at),
            "outcome": run.outcome,
            "reason": run.reason,
            "queue_seconds": run.queue_seconds,
            "prefill_seconds": run.prefill_seconds,
            "decode_seconds": run.decode_seconds,
            "computed_tokens": run.computed_tokens,
            "recomputed_tokens": run.recomputed_tokens,
            "device_seconds": run.device_seconds,
        }
        for number, run in enumerate(runs, start=1)
    ]
