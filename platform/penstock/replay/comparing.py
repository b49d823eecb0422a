"""Comparisons from their beginning to their figures, for replays and shadows alike. Takes a session, never commits.

A comparison has up to three internal jobs: both versions score the stored answer, and the candidate answers anew. Once
all have ended their figures are written to its row, and the jobs are deleted. Rows of comparisons are locked before
those of internal jobs, and sources only where nobody holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session

from penstock.jobs.journal import PromptToken
from penstock.jobs.lease import load_checkpoint
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment
from penstock.replay.answers import FREED, Freed, compare_answers
from penstock.replay.internal import (
    Internal,
    answer_of,
    delete_internal,
    end_internal,
    submit_internal,
    to_answer,
    to_score,
)
from penstock.replay.models import Comparison, ComparisonState, Mode
from penstock.rollouts.scoring import Scored, Unscored, compare, scored_document

_TOKENIZER: Final = "tokenizer.json"
_JOBS: Final = (Comparison.reference_job, Comparison.candidate_job, Comparison.free_job)


@dataclass(frozen=True, slots=True)
class Pair:
    """The version that answered, and the one that is compared with it."""

    reference: Deployment
    candidate: Deployment


@dataclass(frozen=True, slots=True)
class Settled:
    """A comparison that has its figures, or never will have; `crashes` of an engine while it ran one of its jobs alone
    on the candidate."""

    comparison: Comparison
    scored: Scored | None
    crashes: int
    freed: Freed | None = None


def problem_with(source: Job, pair: Pair, mode: Mode) -> str | None:
    """Why the job cannot be compared, if so. One that failed may be answered anew."""
    kept = (JobState.SUCCEEDED, JobState.FAILED) if mode is Mode.FREE else (JobState.SUCCEEDED,)
    if source.kind != "generate" or source.state not in kept:
        return "it has no answer"
    return None if mode is Mode.FREE else _problem_with_scoring(source, pair)


def _problem_with_scoring(source: Job, pair: Pair) -> str | None:
    answer = answer_of(source)
    if not answer:
        return "its answer has no token"
    if pair.reference.manifest.get(_TOKENIZER) != pair.candidate.manifest.get(_TOKENIZER):
        return "the versions have different tokenizers"
    length, room = (source.prompt_tokens or 0) + len(answer), pair.candidate.context_length
    return f"it has {length} tokens, and the candidate's context {room}" if length > room else None


def begin(session: Session, wanted: Sequence[tuple[Comparison, Mode]], pair: Pair) -> None:
    """Submit the comparisons' internal jobs; those that cannot be compared are lost at once. It comes last."""
    ready: list[tuple[Comparison, Mode, Job]] = []
    for comparison, mode in wanted:
        source = session.get_one(Job, comparison.source_id)
        problem = problem_with(source, pair, mode)
        if problem is None:
            ready.append((comparison, mode, source))
        else:
            _lose(session, comparison, problem)
    session.flush()
    purpose = "replay" if wanted and wanted[0][0].replay_id else "shadow"
    jobs = [job for _, mode, source in ready for job in _jobs(source, pair, mode, purpose)]
    ids = iter(submit_internal(session, jobs))
    for comparison, mode, _ in ready:
        comparison.state = ComparisonState.UNDER_WAY
        if mode is not Mode.FREE:
            comparison.reference_job, comparison.candidate_job = next(ids), next(ids)
        if mode is not Mode.TEACHER:
            comparison.free_job = next(ids)
    session.flush()


def settle(session: Session, which: ColumnElement[bool], *, most: int) -> list[Settled]:
    """Write down the figures of up to `most` comparisons whose internal jobs have all ended."""
    named = or_(*(Job.id == column for column in _JOBS))
    unfinished = exists().where(named, Job.finished_at.is_(None)).correlate(Comparison)
    ended = select(Comparison).where(which, Comparison.state == ComparisonState.UNDER_WAY, ~unfinished)
    locked = ended.order_by(Comparison.id).limit(most).with_for_update(skip_locked=True)
    return [_settle(session, comparison) for comparison in session.scalars(locked)]


def drop(session: Session, which: ColumnElement[bool]) -> None:
    """Those that are not settled are no longer wanted, which is all that is said here: `sweep_dropped` ends their jobs.

    So whoever drops them locks no job, however many are under way, and a move of a rollout keeps nobody waiting.
    """
    unsettled = Comparison.state.in_((ComparisonState.WAITING, ComparisonState.UNDER_WAY))
    wanted = select(Comparison.id).where(which, unsettled).order_by(Comparison.id).with_for_update()
    dropped = update(Comparison).where(Comparison.id.in_(wanted)).values(state=ComparisonState.DROPPED)
    session.execute(dropped.execution_options(synchronize_session="fetch"))


def sweep_dropped(session: Session, *, most: int) -> int:
    """End and delete the internal jobs of up to `most` dropped comparisons; of how many none is left.

    It waits for no row: what somebody holds, and what still runs, is for a later sweep.
    """
    left = func.num_nonnulls(*_JOBS) > 0
    wanted = select(Comparison).where(Comparison.state == ComparisonState.DROPPED, left)
    found = session.scalars(wanted.order_by(Comparison.id).limit(most).with_for_update(skip_locked=True)).all()
    remaining = end_internal(session, [job_id for comparison in found for job_id in jobs_of(comparison)])
    swept = [comparison for comparison in found if remaining.isdisjoint(jobs_of(comparison))]
    for comparison in swept:
        comparison.reference_job = comparison.candidate_job = comparison.free_job = None
    session.flush()
    return len(swept)


def jobs_of(comparison: Comparison) -> list[str]:
    """The internal jobs that it has."""
    named = (comparison.reference_job, comparison.candidate_job, comparison.free_job)
    return [job_id for job_id in named if job_id is not None]


def _jobs(source: Job, pair: Pair, mode: Mode, purpose: str) -> list[Internal]:
    scores = [to_score(source, pair.reference, purpose), to_score(source, pair.candidate, purpose)]
    answers = [to_answer(source, pair.candidate, purpose)]
    return {Mode.TEACHER: scores, Mode.FREE: answers, Mode.BOTH: [*scores, *answers]}[mode]


def _settle(session: Session, comparison: Comparison) -> Settled:
    crashes, scored, freed = _crashes(session, comparison), None, None
    try:
        if comparison.free_job is not None:
            freed = compare_answers(session.get_one(Job, comparison.source_id), _internal(session, comparison.free_job))
            comparison.free = FREED.dump_python(freed, mode="json")
        if comparison.candidate_job is not None:
            scored = _score(session, comparison)
            comparison.scored = scored_document(scored)
            comparison.mean_kld, comparison.disagreement = scored.mean_kld, scored.disagreement
    except Unscored as reason:
        _lose(session, comparison, str(reason))
        return Settled(comparison, None, crashes, freed)
    comparison.state = ComparisonState.DONE
    _close(session, comparison)
    return Settled(comparison, scored, crashes, freed)


def _score(session: Session, comparison: Comparison) -> Scored:
    answer = answer_of(session.get_one(Job, comparison.source_id))
    sides = {"reference": comparison.reference_job, "candidate": comparison.candidate_job}
    told = {side: _told(session, side, job_id or "") for side, job_id in sides.items()}
    return compare(told["reference"], told["candidate"], answer)


def _told(session: Session, side: str, job_id: str) -> Sequence[PromptToken]:
    """What a score has found of all tokens of its text."""
    job = _internal(session, job_id)
    if job.state != JobState.SUCCEEDED:
        raise Unscored(f"the {side} could not score it: {(job.error or {}).get('code') or job.state}")
    entries = load_checkpoint(session, job_id)
    if not entries or entries[0].prompt is None:
        raise Unscored(f"the {side} told no log probabilities")
    return entries[0].prompt


def _internal(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise Unscored("one of its internal jobs has gone")
    return job


def _crashes(session: Session, comparison: Comparison) -> int:
    """Of the candidate's engine, beyond those that the request caused on the other version as well."""
    on_candidate = [job_id for job_id in (comparison.candidate_job, comparison.free_job) if job_id is not None]
    alone = select(func.count()).where(JobRun.job_id.in_(on_candidate), JobRun.outcome == RunOutcome.CRASHED_ALONE)
    before = select(Job.own_crashes).where(Job.id == comparison.source_id)
    return max((session.scalar(alone) or 0) - (session.scalar(before) or 0), 0)


def _lose(session: Session, comparison: Comparison, problem: str) -> None:
    comparison.state, comparison.problem = ComparisonState.LOST, problem
    _close(session, comparison)


def _close(session: Session, comparison: Comparison) -> None:
    comparison.settled_at = session.scalars(select(func.clock_timestamp())).one()
    _forget_jobs(session, comparison)


def _forget_jobs(session: Session, comparison: Comparison) -> None:
    gone = jobs_of(comparison)
    comparison.reference_job = comparison.candidate_job = comparison.free_job = None
    session.flush()
    if gone:
        delete_internal(session, gone)
