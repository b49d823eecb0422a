"""The lease on a job: everything that its holder writes, each write fenced.

A holder may write only while `job.fence` is the number it was given at the claim and the job runs; zero rows raise
`LeaseLost`. Only the database's clock counts. Nothing here commits.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import case, func, select, text, update
from sqlalchemy.orm import Session

from penstock.fairness.counters import Due, charge, cost_of
from penstock.jobs.claiming import claim, claim_all
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.finishing import finish, finish_all
from penstock.jobs.holding import (
    Claim,
    Finish,
    Held,
    Progress,
    Renewal,
    computed_input,
    load_checkpoint,
    lost,
    store_journals,
)
from penstock.jobs.models import Job, JobRun
from penstock.jobs.output import count_tokens
from penstock.jobs.states import JobState, RunOutcome
from penstock.outbox.services import Topic, post
from penstock.usage.spent import Spent

__all__ = [
    "Claim", "Finish", "Held", "Progress", "Renewal", "checkpoint", "claim", "claim_all", "finish", "finish_all",
    "hand_back", "load_checkpoint", "note_progress", "note_rewind", "renew",
]  # fmt: skip

# Rows are locked in the order of their ids, as ends of several jobs lock them (`penstock.jobs.locks`).
_RENEW: Final = text(
    """
    WITH held AS (
        SELECT job.id, told.fence
        FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[])) AS told (id, fence) JOIN job ON job.id = told.id
        ORDER BY job.id FOR UPDATE OF job
    )
    UPDATE job SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds)
    FROM held
    WHERE job.id = held.id AND job.fence = held.fence AND job.state = 'running' AND job.lease_holder = :worker_id
    RETURNING job.id, job.cancel_requested_at IS NOT NULL, coalesce(job.deadline <= clock_timestamp(), false)
    """
)

_NOTE_FIRST_TOKENS: Final = text(
    """
    UPDATE job SET first_token_at = run.started_at + make_interval(secs => told.seconds)
    FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:seconds AS double precision[]))
        AS told (id, fence, seconds)
    JOIN job_run AS run ON run.job_id = told.id AND run.fence = told.fence
    WHERE job.id = told.id AND job.fence = told.fence AND job.first_token_at IS NULL
    """
)

_NOTE_SPENT: Final = text(
    """
    UPDATE job_run SET
        cached_tokens = took.cached_tokens, computed_tokens = took.computed_tokens,
        recomputed_tokens = took.recomputed_tokens, device_seconds = took.device_seconds,
        recomputed_seconds = took.recomputed_seconds, joules = took.joules, energy_note = took.energy_note,
        queue_seconds = took.queue_seconds, prefill_seconds = took.prefill_seconds,
        decode_seconds = took.decode_seconds
    FROM unnest(
        CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:cached_tokens AS integer[]),
        CAST(:computed_tokens AS bigint[]), CAST(:recomputed_tokens AS bigint[]),
        CAST(:device_seconds AS double precision[]), CAST(:recomputed_seconds AS double precision[]),
        CAST(:joules AS double precision[]), CAST(:energy_note AS text[]), CAST(:queue_seconds AS double precision[]),
        CAST(:prefill_seconds AS double precision[]), CAST(:decode_seconds AS double precision[])
    ) AS took (
        job_id, fence, cached_tokens, computed_tokens, recomputed_tokens, device_seconds, recomputed_seconds,
        joules, energy_note, queue_seconds, prefill_seconds, decode_seconds
    )
    WHERE job_run.job_id = took.job_id AND job_run.fence = took.fence
    """
)


def renew(session: Session, *, worker_id: str, held: Sequence[Held], lease_seconds: float) -> dict[str, Renewal]:
    """Renew all of a worker's leases in one statement. A lease that is missing from the answer is lost."""
    if not held:
        return {}
    given = {"worker_id": worker_id, "lease_seconds": lease_seconds}
    rows = session.execute(_RENEW, given | _columns(held))
    return {job_id: Renewal(job_id, cancelled, expired) for job_id, cancelled, expired in rows}


def checkpoint(session: Session, progress: Sequence[Progress]) -> None:
    """Copy running jobs' journals to PostgreSQL. What is no longer held is left alone: its new holder knows better."""
    prompt_tokens = _lock_held(session, [item.held for item in progress])
    current = [item for item in progress if item.held.job_id in prompt_tokens]
    if not current:
        return
    store_journals(session, [(item.held, item.entries) for item in current])
    _note_spent(session, [(item.held, item.spent) for item in current if item.spent is not None])
    _note_first_tokens(session, [item for item in current if item.first_token_seconds is not None])
    charge(session, [_due(item, prompt_tokens[item.held.job_id]) for item in current])


def hand_back(
    session: Session,
    held: Held,
    outcome: RunOutcome,
    reason: str,
    *,
    max_own_crashes: int,
    spent: Spent | None = None,
) -> Job:
    """Give an unfinished job back to the queue, where it keeps its age.

    A crash while it ran alone counts as the job's own; after `max_own_crashes` of them it fails with the code
    `engine_crashed`.
    """
    if outcome is RunOutcome.CRASHED_ALONE:
        crashes = session.scalar(select(Job.own_crashes).where(Job.id == held.job_id)) or 0
        if crashes + 1 >= max_own_crashes:
            return _give_up(session, held, reason, crashes + 1, spent)
    job = _move(
        session,
        held,
        JobState.QUEUED,
        own_crashes=Job.own_crashes + (1 if outcome is RunOutcome.CRASHED_ALONE else 0),
    )
    _end_run(session, held, outcome, reason, spent)
    record(session, [Happening(job, EventType.REQUEUED, {"reason": reason, "outcome": outcome.value})])
    post(session, Topic.DOORBELL, {"deployment_id": job.deployment_id, "jobs": 1})
    return job


def note_rewind(session: Session, held: Held, position: int) -> None:
    """Record that the journal was lost past `position`: readers hear it explicitly, never as a silent repeat."""
    _note(session, held, EventType.REWOUND, {"position": position})


def note_progress(session: Session, held: Held, progress: dict[str, Any]) -> None:
    """Record how far a job is that generates nothing."""
    _note(session, held, EventType.PROGRESS, progress)


def _note(session: Session, held: Held, event: EventType, data: dict[str, Any]) -> None:
    job = session.scalars(
        update(Job).where(*_is_held([held])).values(last_event=Job.last_event + 1).returning(Job)
    ).one_or_none()
    if job is None:
        raise lost(held)
    record(session, [Happening(job, event, data)])


def _give_up(session: Session, held: Held, reason: str, crashes: int, spent: Spent | None) -> Job:
    error = {
        "code": "engine_crashed",
        "message": f"the engine crashed {crashes} times while this job ran alone: {reason}",
    }
    kept = load_checkpoint(session, held.job_id)
    prompt_tokens = session.scalar(select(Job.prompt_tokens).where(Job.id == held.job_id)) or 0
    crashed = RunOutcome.CRASHED_ALONE
    job = finish(session, held, Finish(JobState.FAILED, kept, prompt_tokens, error=error, spent=spent, outcome=crashed))
    session.execute(update(Job).where(Job.id == job.id, Job.fence == held.fence).values(own_crashes=crashes))
    session.execute(
        update(JobRun).where(JobRun.job_id == held.job_id, JobRun.fence == held.fence).values(reason=reason)
    )
    return job


def _move(session: Session, held: Held, state: JobState, **values: Any) -> Job:
    """The fenced state change: zero rows mean that the lease is lost."""
    job = session.scalars(
        update(Job)
        .where(Job.id == held.job_id, Job.fence == held.fence, Job.state == JobState.RUNNING)
        .values(state=state, lease_holder=None, lease_expires_at=None, last_event=Job.last_event + 1, **values)
        .returning(Job)
        .execution_options(populate_existing=True, synchronize_session=False)
    ).one_or_none()
    if job is None:
        raise lost(held)
    return job


def _is_held(held: Sequence[Held]) -> list[Any]:
    fences = {item.job_id: item.fence for item in held}
    return [Job.id.in_(fences), Job.state == JobState.RUNNING, Job.fence == case(fences, value=Job.id)]


def _lock_held(session: Session, held: Sequence[Held]) -> dict[str, int]:
    """Lock the jobs that are still held. Returns their prompts' tokens."""
    if not held:
        return {}
    prompt_tokens = func.coalesce(Job.prompt_tokens, 0)
    locked = select(Job.id, prompt_tokens).where(*_is_held(held)).order_by(Job.id).with_for_update(skip_locked=True)
    return dict(session.execute(locked).all())


def _due(item: Progress, prompt_tokens: int) -> Due:
    """What a running job has cost its tenant by now: candidates of `best_of` count before they are told."""
    spent = item.spent or Spent()
    cached, ran = spent.cached_tokens or 0, spent.computed_tokens - spent.recomputed_tokens
    output = count_tokens(item.entries) or max(ran - (prompt_tokens - cached), 0)
    computed = computed_input(prompt_tokens, cached, ran, output)
    return Due(item.held.job_id, cost_of(computed_input=computed, output=output))


def _note_first_tokens(session: Session, started: Sequence[Progress]) -> None:
    if started:
        seconds = [item.first_token_seconds for item in started]
        session.execute(_NOTE_FIRST_TOKENS, _columns([item.held for item in started]) | {"seconds": seconds})


def _end_run(session: Session, held: Held, outcome: RunOutcome, reason: str | None, spent: Spent | None = None) -> None:
    session.execute(
        update(JobRun)
        .where(JobRun.job_id == held.job_id, JobRun.fence == held.fence, JobRun.ended_at.is_(None))
        .values(
            ended_at=func.clock_timestamp(),
            outcome=outcome,
            reason=reason,
            **(spent.columns if spent is not None else {}),
        )
        .execution_options(synchronize_session=False)
    )


def _note_spent(session: Session, spent: Sequence[tuple[Held, Spent]]) -> None:
    """What runs took by now: totals, which overwrite what they were, so that no repetition counts twice."""
    if spent:
        took: dict[str, list[Any]] = {name: [getattr(each, name) for _, each in spent] for name in Spent.__slots__}
        session.execute(_NOTE_SPENT, _columns([held for held, _ in spent]) | took)


def _columns(held: Sequence[Held]) -> dict[str, list[Any]]:
    return {"ids": [each.job_id for each in held], "fences": [each.fence for each in held]}
