"""The gates of real jobs, canary and A/B: what came of assigned jobs becomes evidence, once.

A turn counts new units, then jobs that run for too long, then those that have ended, then feedback. What it counts it
marks in the same transaction, so one that is broken off has counted nothing. Units are counted when they are assigned,
not when they end: a version that takes longer, or has fewer workers, is no mismatch of samples.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, case, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from penstock.feedback.models import Feedback
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.rollouts.assignment import Arm, Unit
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.failures import model_may_be_to_blame
from penstock.rollouts.models import AssignedUnit, Assignment, Rollout
from penstock.rollouts.outcomes import Counts, Outcome, added, fold, with_feedback
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import State, stage
from penstock.rollouts.thresholds import SECONDS, freeze

AT_ONCE: Final = 2_000
"""Jobs that a turn counts at most, so that it stays short."""
FEEDBACK_MAY_LAG: Final = timedelta(seconds=60)
"""Feedback bears the time at which its transaction began, and is seen when that has ended."""
Said = Row[float | None, datetime, str, float, str | None, float]
"""A score, since when it is kept, and its job's arm, share, key, and seconds of a device."""
_COMPLETED: Final = (JobState.SUCCEEDED, JobState.FAILED)


def begin(session: Session, rollout: Rollout, policy: Policy) -> None:
    """Freeze from how many seconds on a job is slow, as far as the champion's jobs tell by now."""
    rollout.thresholds, rollout.judged_until = {}, None
    session.flush()
    if policy.latency is not None:
        freeze(session, rollout, policy.latency)


def gather(session: Session, rollout: Rollout, policy: Policy, before: Evidence) -> Evidence:
    """With what was assigned, ended and said since."""
    evidence = replace(before, units=added(before.units, _new_units(session, rollout)))
    late, ended = _late(session, rollout, policy), _ended(session, rollout)
    outcomes = [_outcome(row, policy) for row in (*late, *ended) if _served_as_assigned(row, rollout)]
    units = _marks(session, rollout, (outcome.key for outcome in outcomes))
    evidence = fold(evidence, outcomes, units, rollout.thresholds, rollout.step)
    session.flush()
    if policy.latency is not None and ended:
        freeze(session, rollout, policy.latency)
    if rollout.state == State.AB:
        evidence = _with_feedback(session, rollout, evidence)
    return replace(evidence, crashes=max(before.crashes, _crashes(session, rollout)))


def end(session: Session, rollout: Rollout, policy: Policy) -> None:  # noqa: ARG001 - as every gate's end
    """Count nothing more of any stage of jobs, and forget who their users were."""
    left = Assignment.counted_at.is_(None) | ~Assignment.seen
    of_jobs = (Assignment.rollout_id == rollout.id, Assignment.stage != State.SHADOW, left)
    session.execute(update(Assignment).where(*of_jobs).values(seen=True, counted_at=func.now()))
    session.execute(delete(AssignedUnit).where(AssignedUnit.rollout_id == rollout.id))


def _own(rollout: Rollout) -> tuple[ColumnElement[bool], ...]:
    return Assignment.rollout_id == rollout.id, Assignment.stage == stage(rollout.position)


def _new_units(session: Session, rollout: Rollout) -> Counts:
    """Those of assignments that were not seen before. A user or tenant counts on the arm of their first job."""
    chosen = (
        select(Assignment.job_id)
        .where(*_own(rollout), ~Assignment.seen)
        .order_by(Assignment.job_id)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    seen = update(Assignment).where(Assignment.job_id.in_(chosen)).values(seen=True)
    found = session.execute(seen.returning(Assignment.job_id, Assignment.key, Assignment.share, Assignment.arm)).all()
    if rollout.unit == Unit.JOB:
        return Counter((row.share, Arm(row.arm)) for row in found)
    first = {row.key: row for row in sorted(found, key=lambda row: row.job_id, reverse=True) if row.key is not None}
    new = _meet(session, rollout, {key: row.job_id for key, row in first.items()})
    return Counter((first[key].share, Arm(first[key].arm)) for key in new)


def _meet(session: Session, rollout: Rollout, first_jobs: Mapping[str, str]) -> Sequence[str]:
    """Note units by their first jobs; the keys of those that nobody knew."""
    own = {"rollout_id": rollout.id, "stage": stage(rollout.position)}
    rows = [own | {"key": key, "first_job": job_id} for key, job_id in sorted(first_jobs.items())]
    if not rows:
        return []
    return session.scalars(insert(AssignedUnit).on_conflict_do_nothing().returning(AssignedUnit.key), rows).all()


def _ended(session: Session, rollout: Rollout) -> Sequence[Row[Any]]:
    """Assigned jobs that have ended and were not counted, as they ended; marked as counted."""
    ended = _jobs(rollout).where(Job.finished_at.is_not(None)).order_by(Job.finished_at, Job.id)
    found = session.execute(ended.limit(AT_ONCE).with_for_update(of=Assignment, skip_locked=True)).all()
    counted = update(Assignment).where(Assignment.job_id.in_([row.job_id for row in found]))
    session.execute(counted.values(counted_at=func.now()))
    return found


def _late(session: Session, rollout: Rollout, policy: Policy) -> Sequence[Row[Any]]:
    """Assigned jobs that run for longer than their threshold, each the first time that this is seen; noted as such.

    They are slow, whatever becomes of them. One that never ends would otherwise never be found out.
    """
    if policy.latency is None or not rollout.thresholds:
        return []
    least = timedelta(seconds=min(rollout.thresholds.values()))
    running = _jobs(rollout).where(
        Job.deployment_id.in_((rollout.champion_id, rollout.candidate_id)),
        Job.state == JobState.RUNNING,
        Job.started_at < func.clock_timestamp() - least,
        ~Assignment.late,
    )
    ordered = running.order_by(Job.started_at, Job.id).limit(AT_ONCE)
    found = session.execute(ordered.with_for_update(of=Assignment, skip_locked=True)).all()
    late = [row for row in found if _outcome(row, policy).slow(rollout.thresholds)]
    noted = update(Assignment).where(Assignment.job_id.in_([row.job_id for row in late]))
    session.execute(noted.values(late=True))
    return late


def _jobs(rollout: Rollout) -> Select[Any]:
    """Assigned jobs that were seen and not counted. What was found late is not timed again."""
    seconds = case((~Assignment.late, SECONDS)).label("seconds")
    return (
        select(Assignment.job_id, Assignment.arm, Assignment.share, Assignment.step, Assignment.key)
        .add_columns(Job.state, Job.error, Job.prompt_tokens, Job.started_at, Job.deployment_id, seconds)
        .join(Job, Job.id == Assignment.job_id)
        .where(*_own(rollout), Assignment.counted_at.is_(None), Assignment.seen)
    )


def _served_as_assigned(row: Row[Any], rollout: Rollout) -> bool:
    """Not sent to the other version meanwhile, as jobs are that wait when a rollout stops."""
    arms = {Arm.CHAMPION: rollout.champion_id, Arm.CANDIDATE: rollout.candidate_id}
    return bool(row.deployment_id == arms[Arm(row.arm)])


def _outcome(row: Row[Any], policy: Policy) -> Outcome:
    return Outcome(
        job_id=row.job_id,
        arm=Arm(row.arm),
        share=row.share,
        step=row.step,
        key=row.key,
        completed=row.state in _COMPLETED,
        failed=model_may_be_to_blame(row.state, row.error),
        stratum=policy.latency.stratum(row.prompt_tokens or 0) if policy.latency else None,
        seconds=None if row.seconds is None else float(row.seconds),
    )


def _marks(session: Session, rollout: Rollout, keys: Iterable[str | None]) -> dict[str, AssignedUnit]:
    """What was counted of these units; kept from every other turn until this one ends."""
    wanted = sorted({key for key in keys if key is not None})
    own = (AssignedUnit.rollout_id == rollout.id, AssignedUnit.stage == stage(rollout.position))
    locked = select(AssignedUnit).where(*own, AssignedUnit.key.in_(wanted)).order_by(AssignedUnit.key)
    fresh = locked.with_for_update().execution_options(populate_existing=True)
    return {unit.key: unit for unit in session.scalars(fresh)} if wanted else {}


def _crashes(session: Session, rollout: Rollout) -> int:
    """Of the candidate's engine, since the stage began."""
    found = (
        select(func.count())
        .select_from(JobRun)
        .join(Job, Job.id == JobRun.job_id)
        .where(
            JobRun.outcome == RunOutcome.CRASHED_ALONE,
            JobRun.ended_at >= rollout.stage_started_at,
            Job.deployment_id == rollout.candidate_id,
        )
    )
    return session.scalar(found) or 0


def _with_feedback(session: Session, rollout: Rollout, before: Evidence) -> Evidence:
    """With the first score of each unit that gave none before."""
    said = _said(session, rollout)
    units = _marks(session, rollout, (row.key for row in said))
    counts: Counts = Counter()
    scores: list[tuple[Arm, float, float]] = []
    for row in said:
        score, _, arm, share, key, seconds = row
        unit = units.get(key or "")
        if score is None or unit is None or unit.judged:
            continue
        unit.judged = True
        counts[share, Arm(arm)] += 1
        scores.append((Arm(arm), score, seconds))
    if said:
        rollout.judged_until = _read_until(said, units)
    session.flush()
    return with_feedback(replace(before, judged=added(before.judged, counts)), scores)


def _said(session: Session, rollout: Rollout) -> Sequence[Said]:
    """Scores of units that gave none before, in the order in which they came, from a little before those read last."""
    since = rollout.stage_started_at if rollout.judged_until is None else rollout.judged_until - FEEDBACK_MAY_LAG
    unit = and_(
        AssignedUnit.rollout_id == Assignment.rollout_id,
        AssignedUnit.stage == Assignment.stage,
        AssignedUnit.key == Assignment.key,
    )
    runs = select(func.coalesce(func.sum(JobRun.device_seconds), 0.0)).where(JobRun.job_id == Feedback.job_id)
    took = runs.scalar_subquery()
    said = (
        select(Feedback.score, Feedback.created_at, Assignment.arm, Assignment.share, Assignment.key, took)
        .join(Assignment, Assignment.job_id == Feedback.job_id)
        .outerjoin(AssignedUnit, unit)
        .where(
            *_own(rollout),
            Feedback.deployment_id.in_((rollout.champion_id, rollout.candidate_id)),
            Feedback.created_at > since,
            Feedback.score.is_not(None),
            AssignedUnit.judged.is_not(True),
        )
    )
    return session.execute(said.order_by(Feedback.created_at, Feedback.id).limit(AT_ONCE)).all()


def _read_until(said: Sequence[Said], units: Mapping[str, AssignedUnit]) -> datetime:
    """Up to the first score whose unit was not met yet, or else the last."""
    return next((row[1] for row in said if row.key not in units), said[-1][1])
