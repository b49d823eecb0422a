"""Which failures make a job a dead letter, and the letter that is written in the transaction of its failure."""

from typing import Final

from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.dead_letters.models import DeadLetter
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.jobs.states import JobState

DEADLY: Final = {
    "engine_crashed": "the engine's process died again and again while the job ran alone",
    "forward_failed": "the model fails on it alone, also in a step of its own",
    "out_of_memory": "the device has too little memory for it, also alone",
    "logits_not_finite": "the model's output for it is not finite",
    "internal_error": "the worker could not prepare it, or not turn its tokens into text",
}
"""Codes of what running the job itself breaks: neither its sender nor another try mends that by itself."""


def bury_if_deadly(session: Session, job: Job) -> None:
    """Write the letter of a job that has failed in a way that somebody must look at."""
    error = job.error or {}
    if job.state != JobState.FAILED or error.get("code") not in DEADLY or job.tenant_id == SYSTEM_TENANT_ID:
        return
    session.execute(
        upsert(DeadLetter)
        .values(
            id=new_id("dlt"),
            tenant_id=job.tenant_id,
            job_id=job.id,
            reason=error["code"],
            message=error.get("message", ""),
            model_name=job.model_name,
            model_version=job.model_version,
        )
        .on_conflict_do_nothing(index_elements=[DeadLetter.job_id])
    )
