"""The jobs behind a decision, all of them: which arm each was on, what came of it, and whether it was sent back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.ids import first_id
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.rollouts import reading
from penstock.rollouts.assignment import Arm
from penstock.rollouts.models import UNDER_WAY, Assignment, Rollout

_LATEST_SUBMIT: Final = timedelta(minutes=5)
"""After a rollout's end no submit commits any more that knew it."""


@dataclass(frozen=True, slots=True)
class Sought:
    """Which jobs: of one arm, in one state, or sent to the champion by the rollout's end; None is any."""

    arm: Arm | None = None
    status: JobState | None = None
    rerouted: bool = False


@dataclass(frozen=True, slots=True)
class CountedJob:
    """A job of a rollout. Without an assignment it waited for a version that was the champion for a while."""

    job: Job
    assignment: Assignment | None


def jobs_of(
    session: Session, rollout_id: str, sought: Sought, *, limit: int, before: str | None
) -> tuple[list[CountedJob], str | None]:
    """A page of a rollout's jobs, newest first, and the cursor of the next page (an id). Raises `NotFound`."""
    rollout = reading.get(session, rollout_id)
    query = _rerouted(rollout) if sought.rerouted else _assigned(rollout)
    if sought.arm is not None:
        query = query.where(Assignment.arm == sought.arm)
    if sought.status is not None:
        query = query.where(Job.state == sought.status)
    if before is not None:
        query = query.where(Job.id < before)
    rows: Sequence[Any] = session.execute(query.order_by(Job.id.desc()).limit(limit + 1)).all()
    found = [CountedJob(job, assignment) for job, assignment in rows]
    return found[:limit], found[limit - 1].job.id if len(found) > limit else None


def counted_document(counted: CountedJob, rollout_id: str) -> dict[str, Any]:
    """As `CountedJobDocument`."""
    job, assigned = counted.job, counted.assignment
    return {
        "object": "rollout_job",
        "job_id": job.id,
        "tenant_id": job.tenant_id,
        "arm": assigned.arm if assigned else None,
        "stage": assigned.stage if assigned else None,
        "step": assigned.step if assigned else None,
        "version": job.model_version,
        "status": job.state,
        "error": (job.error or {}).get("code"),
        "rerouted": job.routing.get("rule") == "rerouted" and job.routing.get("rollout") == rollout_id,
        "assigned_at": iso(assigned.assigned_at) if assigned else None,
        "counted_at": iso(assigned.counted_at) if assigned else None,
        "finished_at": iso(job.finished_at),
    }


def _assigned(rollout: Rollout) -> Select[Job, Assignment]:
    joined = select(Job, Assignment).join(Assignment, Assignment.job_id == Job.id)
    # By the assignment's own key, in which all that came while the rollout went on lie together.
    return joined.where(Assignment.rollout_id == rollout.id, *_meanwhile(rollout, Assignment.job_id))


def _rerouted(rollout: Rollout) -> Select[Job, Assignment]:
    own = and_(Assignment.job_id == Job.id, Assignment.rollout_id == rollout.id)
    sent = (Job.routing["rule"].astext == "rerouted", Job.routing["rollout"].astext == rollout.id)
    return select(Job, Assignment).outerjoin(Assignment, own).where(*sent, *_meanwhile(rollout, Job.id))


def _meanwhile(rollout: Rollout, job_id: Any) -> list[ColumnElement[bool]]:
    """Identifiers of jobs sort by when they were made."""
    since = [job_id >= first_id("job", rollout.created_at)]
    if rollout.state in UNDER_WAY:
        return since
    return [*since, job_id < first_id("job", rollout.entered_at + _LATEST_SUBMIT)]
