"""The shadow gate: the candidate scores answers that the champion gave, which nobody waits for.

Of each sampled job that succeeded both versions score the answer's tokens, each by one prefill at the lowest class, so
that what is compared was computed in the same way. The champion is scored beside the candidate because the job itself
told no distributions. Of several choices the first is scored; an answer that was cut short, or held to a grammar, is
scored as it is: both versions are asked for their own distributions, without the grammar.

Part of the sampled jobs the candidate answers as well, those that failed on the champion among them: what it fails, and
what it takes, is compared in `penstock.rollouts.free_running`.
"""

from dataclasses import replace
from typing import Final

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.replay import comparing
from penstock.replay.answers import Freed
from penstock.replay.comparing import Pair
from penstock.replay.models import Comparison, ComparisonState, Mode
from penstock.rollouts.assignment import Unit, place
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.failures import model_may_be_to_blame
from penstock.rollouts.free_running import Ended, FreeRun
from penstock.rollouts.models import Assignment, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.scoring import Scored
from penstock.rollouts.states import State
from penstock.rollouts.statistics import Sample

MOST_UNDER_WAY: Final = 64
"""Answers of one rollout that are being scored at a time; other sampled jobs wait for their turn."""
SETTLED_AT_ONCE: Final = 32


def begin(session: Session, rollout: Rollout, policy: Policy) -> None:
    """Nothing: the first jobs that are sampled begin it."""


def gather(session: Session, rollout: Rollout, policy: Policy, before: Evidence) -> Evidence:
    """With the answers that were scored, or given anew, since; and has the next ones begun."""
    settled = comparing.settle(session, Comparison.rollout_id == rollout.id, most=SETTLED_AT_ONCE)
    begun = _begin_next(session, rollout, policy)
    lost = [each.state for each in (*(done.comparison for done in settled), *begun)].count(ComparisonState.LOST)
    scored = [each.scored for each in settled if each.scored is not None]
    return replace(
        before,
        seconds=_seconds_since(session, rollout),
        step_units=before.step_units + len(scored),
        lost=before.lost + lost,
        crashes=before.crashes + sum(each.crashes for each in settled),
        scored=_with(before.scored, scored),
        free=_with_answers(before.free, [each.freed for each in settled if each.freed is not None]),
    )


def end(session: Session, rollout: Rollout, policy: Policy) -> None:  # noqa: ARG001 - as every gate's end
    """Score no more: what is under way is dropped, what was sampled and not begun is passed over."""
    session.execute(update(Assignment).where(*_sampled(rollout)).values(counted_at=func.now()))
    comparing.drop(session, Comparison.rollout_id == rollout.id)


def _with(before: dict[str, Sample], scored: list[Scored]) -> dict[str, Sample]:
    values = {
        "mean_kld": [min(each.mean_kld, 1.0) for each in scored],
        "disagreement": [each.disagreement for each in scored],
    }
    return {name: before.get(name, Sample(lower=0.0)).plus(*given) for name, given in values.items()}


def _with_answers(before: FreeRun, freed: list[Freed]) -> FreeRun:
    """Those that either version ended without answer, and without fault, tell nothing."""
    for each in freed:
        sides = each.answered, each.stored
        if all(side.error is None or side.failed for side in sides):
            candidate, champion = (
                Ended(side.failed, side.seconds if side.runs == 1 else None, side.device_seconds) for side in sides
            )
            before = before.plus(candidate, champion, exact=each.exact is True)
    return before


def _begin_next(session: Session, rollout: Rollout, policy: Policy) -> list[Comparison]:
    """Have sampled jobs that have ended compared, as far as there is room; which those are."""
    jobs = _take(session, rollout, MOST_UNDER_WAY - _under_way(session, rollout))
    wanted = [
        (Comparison(id=new_id("cmp"), source_id=job.id, rollout_id=rollout.id), mode)
        for job in jobs
        if (mode := _mode(job, rollout, policy)) is not None
    ]
    if not wanted:
        return []
    session.add_all(comparison for comparison, _ in wanted)
    session.flush()
    pair = Pair(session.get_one(Deployment, rollout.champion_id), session.get_one(Deployment, rollout.candidate_id))
    comparing.begin(session, wanted, pair)
    return [comparison for comparison, _ in wanted]


def _mode(job: Job, rollout: Rollout, policy: Policy) -> Mode | None:
    """How the job is compared, if at all: one that failed has no answer to score."""
    part = policy.shadow.free_running if policy.shadow else 0.0
    answered_anew = place(f"{rollout.seed} free", Unit.JOB, job.id) < part
    if job.kind != "generate":
        return None
    if job.state == JobState.SUCCEEDED:
        return Mode.BOTH if answered_anew else Mode.TEACHER
    return Mode.FREE if answered_anew and model_may_be_to_blame(job.state, job.error) else None


def _take(session: Session, rollout: Rollout, room: int) -> list[Job]:
    """The next sampled jobs that have ended, in their order, noted as taken. Whatever somebody holds is left for later.

    Most that did not succeed are taken, and nothing is begun for them.
    """
    if room <= 0:
        return []
    ended = (
        select(Assignment, Job)
        .join(Job, Job.id == Assignment.job_id)
        .where(*_sampled(rollout), Job.finished_at.is_not(None))
        .order_by(Assignment.job_id)
        .limit(room)
        .with_for_update(skip_locked=True, key_share=True)
    )
    found = session.execute(ended).all()
    now = session.scalars(select(func.clock_timestamp())).one()
    for assignment, _ in found:
        assignment.counted_at = now
    session.flush()
    return [job for _, job in found]


def _sampled(rollout: Rollout) -> tuple[ColumnElement[bool], ...]:
    return (Assignment.rollout_id == rollout.id, Assignment.stage == State.SHADOW, Assignment.counted_at.is_(None))


def _under_way(session: Session, rollout: Rollout) -> int:
    own = Comparison.rollout_id == rollout.id
    return session.scalar(select(func.count()).where(own, Comparison.state == ComparisonState.UNDER_WAY)) or 0


def _seconds_since(session: Session, rollout: Rollout) -> float:
    now = session.scalars(select(func.clock_timestamp())).one()
    return float((now - rollout.stage_started_at).total_seconds())
