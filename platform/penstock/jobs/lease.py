"""The lease on a job: everything that its holder writes, each write fenced.

A holder may write only while `job.fence` is the number it was given at the claim and the job runs; zero rows raise
`LeaseLost`. Only the database's clock counts. Nothing here commits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Interval, bindparam, case, cast, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.dead_letters.burial import bury_if_deadly
from penstock.errors import LeaseLost
from penstock.fairness.counters import Due, charge, cost_of
from penstock.fairness.turns import next_job
from penstock.jobs.events import EventType, Happening, record
from penstock.jobs.journal import JournalEntry, pack_entries, unpack_entries
from penstock.jobs.models import Job, JobJournal, JobRun
from penstock.jobs.output import assemble_output, count_tokens
from penstock.jobs.states import JobState, RunOutcome
from penstock.outbox.services import Topic, post
from penstock.usage import accounting
from penstock.usage.spent import Spent


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is now ours. `checkpoint` is what PostgreSQL has of its journal from earlier runs.

    `weight` is its tenant's share of a worker beside those of others; `seconds_left` is until its deadline, by the
    database's clock at the claim.
    """

    job: Job
    fence: int
    checkpoint: list[JournalEntry]
    weight: float = 1.0
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that a holder believes to have."""

    job_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a holder learns when it renews: whether the job is to be stopped, and how."""

    job_id: str
    cancel_requested: bool
    deadline_passed: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job's journal so far, for its checkpoint, and what its run took by now.

    `first_token_seconds` counts from the claim.
    """

    held: Held
    entries: Sequence[JournalEntry]
    first_token_seconds: float | None
    spent: Spent | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """How a job ended. `entries` is its whole journal; the output is assembled from it.

    `untold_tokens` were generated for choices that `best_of` left out: they are used, but in no output. `spent` is what
    the last run took; None is what its last checkpoint told.
    """

    state: JobState
    entries: Sequence[JournalEntry]
    prompt_tokens: int
    cached_tokens: int = 0
    first_token_seconds: float | None = None
    error: dict[str, Any] | None = None
    untold_tokens: int = 0
    spent: Spent | None = None
    outcome: RunOutcome = RunOutcome.FINISHED
    data: dict[str, Any] = field(default_factory=dict)


def claim(
    session: Session,
    *,
    worker_id: str,
    deployment_id: str,
    lease_seconds: float,
    recent_prefixes: Sequence[int] = (),
) -> Claim | None:
    """Take the job whose turn it is on the deployment (`penstock.fairness.turns`). None when nothing may be claimed.

    `recent_prefixes` are fingerprints of the prompts that this worker served last, the newest first.
    """
    next_id = next_job(session, deployment_id, recent_prefixes)
    if next_id is None:
        return None
    job = session.scalars(
        update(Job)
        .where(Job.id == next_id)
        .values(
            state=JobState.RUNNING,
            fence=Job.fence + 1,
            runs=Job.runs + 1,
            last_event=Job.last_event + 1,
            lease_holder=worker_id,
            lease_expires_at=_from_now(lease_seconds),
            started_at=func.coalesce(Job.started_at, func.now()),  # the very moment of the JobRun
        )
        .returning(Job)
        .execution_options(populate_existing=True, synchronize_session=False)
    ).one()
    checkpoint = load_checkpoint(session, job.id)
    session.execute(
        insert(JobRun),
        {
            "job_id": job.id,
            "fence": job.fence,
            "worker_id": worker_id,
            "resumed_at_position": len(checkpoint),
        },
    )
    record(session, [Happening(job, EventType.RUNNING, {"run": job.runs, "worker": worker_id})])
    weight, seconds_left = _standing(session, job)
    return Claim(job, job.fence, checkpoint, weight, seconds_left)


def renew(session: Session, *, worker_id: str, held: Sequence[Held], lease_seconds: float) -> dict[str, Renewal]:
    """Renew all of a worker's leases in one statement. A lease that is missing from the answer is lost."""
    if not held:
        return {}
    rows = session.execute(
        update(Job)
        .where(*_is_held(held), Job.lease_holder == worker_id)
        .values(lease_expires_at=_from_now(lease_seconds))
        .returning(
            Job.id,
            Job.cancel_requested_at.is_not(None),
            func.coalesce(Job.deadline <= func.clock_timestamp(), False),
        )
    )
    return {job_id: Renewal(job_id, cancelled, expired) for job_id, cancelled, expired in rows}


def checkpoint(session: Session, progress: Sequence[Progress]) -> None:
    """Copy running jobs' journals to PostgreSQL. What is no longer held is left alone: its new holder knows better."""
    prompt_tokens = _lock_held(session, [item.held for item in progress])
    current = [item for item in progress if item.held.job_id in prompt_tokens]
    if not current:
        return
    _store_journals(session, [(item.held, item.entries) for item in current])
    _note_spent(session, [(item.held, item.spent) for item in current if item.spent is not None])
    _note_first_tokens(session, [item for item in current if item.first_token_seconds is not None])
    charge(session, [_due(item, prompt_tokens[item.held.job_id]) for item in current])


def finish(session: Session, held: Held, result: Finish) -> Job:
    """End the job, exactly once: state, output, journal, usage, event and webhooks in this one transaction."""
    output_tokens = count_tokens(result.entries) + result.untold_tokens
    tally = accounting.tally(
        session,
        held.job_id,
        result.state,
        tokens=(result.prompt_tokens, output_tokens),
        cached_tokens=result.cached_tokens,
        last=(held.fence, result.outcome, result.spent),
    )
    job = _move(
        session,
        held,
        result.state,
        output=assemble_output(result.entries),
        error=result.error,
        prompt_tokens=result.prompt_tokens,
        cached_tokens=tally.cached_tokens,
        output_tokens=output_tokens,
        account=tally.account,
        finished_at=func.clock_timestamp(),
        first_token_at=func.coalesce(
            Job.first_token_at,
            None
            if result.first_token_seconds is None
            else _first_token_at(literal(held.job_id), literal(held.fence), literal(result.first_token_seconds)),
        ),
    )
    _store_journals(session, [(held, result.entries)])
    _end_run(session, held, result.outcome, None, result.spent)
    accounting.record(session, job, tally)
    bury_if_deadly(session, job)
    record(session, [Happening(job, EventType(f"job.{result.state.value}"), _finish_data(job, result))])
    computed = _computed_input(tally.prompt_tokens, tally.cached_tokens, tally.computed_tokens, output_tokens)
    charge(session, [Due(job.id, cost_of(computed_input=computed, output=output_tokens))])  # last: it locks a counter
    return job


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
    job = session.scalars(
        update(Job).where(*_is_held([held])).values(last_event=Job.last_event + 1).returning(Job)
    ).one_or_none()
    if job is None:
        raise _lost(held)
    record(session, [Happening(job, EventType.REWOUND, {"position": position})])


def load_checkpoint(session: Session, job_id: str) -> list[JournalEntry]:
    """What PostgreSQL has of the job's journal."""
    data = session.scalar(select(JobJournal.entries).where(JobJournal.job_id == job_id))
    return unpack_entries(data) if data is not None else []


def _standing(session: Session, job: Job) -> tuple[float, float | None]:
    """The weight of the job's tenant, and the seconds to its deadline."""
    left: Any = func.extract("epoch", Job.deadline - func.clock_timestamp())
    standing = select(Tenant.weight, left).join(Job, Job.tenant_id == Tenant.id).where(Job.id == job.id)
    weight, seconds = session.execute(standing).one()
    return weight, None if seconds is None else float(seconds)


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
        raise _lost(held)
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
    computed = _computed_input(prompt_tokens, cached, ran, output)
    return Due(item.held.job_id, cost_of(computed_input=computed, output=output))


def _computed_input(prompt_tokens: int, cached_tokens: int, computed_tokens: int, output_tokens: int) -> int:
    """How much of the prompt has been computed: all that was not cached, once there is output."""
    uncached = prompt_tokens - cached_tokens
    return uncached if output_tokens else min(uncached, computed_tokens)


def _note_first_tokens(session: Session, started: Sequence[Progress]) -> None:
    if not started:
        return
    session.connection().execute(
        update(Job.__table__)  # type: ignore[arg-type]  # a core update: one statement for many rows
        .where(
            Job.__table__.c.id == bindparam("held_id"),
            Job.__table__.c.fence == bindparam("held_fence"),
            Job.__table__.c.first_token_at.is_(None),
        )
        .values(first_token_at=_first_token_at(bindparam("held_id"), bindparam("held_fence"), bindparam("seconds"))),
        [
            {"held_id": item.held.job_id, "held_fence": item.held.fence, "seconds": item.first_token_seconds}
            for item in started
        ],
    )


def _store_journals(session: Session, journals: Sequence[tuple[Held, Sequence[JournalEntry]]]) -> None:
    statement = upsert(JobJournal)
    excluded = {name: statement.excluded[name] for name in ("fence", "length", "entries")}
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[JobJournal.job_id],
            set_=excluded | {"updated_at": func.now()},
            where=JobJournal.fence <= statement.excluded.fence,
        ),
        [
            {"job_id": held.job_id, "fence": held.fence, "length": len(entries), "entries": pack_entries(entries)}
            for held, entries in journals
        ],
    )


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
    if not spent:
        return
    session.connection().execute(
        update(JobRun.__table__)  # type: ignore[arg-type]  # a core update: one statement for many rows
        .where(JobRun.__table__.c.job_id == bindparam("held_id"), JobRun.__table__.c.fence == bindparam("held_fence"))
        .values({name: bindparam(f"new_{name}") for name in Spent.__slots__}),
        [
            {"held_id": held.job_id, "held_fence": held.fence}
            | {f"new_{name}": value for name, value in each.columns.items()}
            for held, each in spent
        ],
    )


def _finish_data(job: Job, result: Finish) -> dict[str, Any]:
    data = {"output_tokens": job.output_tokens} | result.data
    return data | {"error": result.error} if result.error is not None else data


def _first_token_at(job_id: Any, fence: Any, seconds: Any) -> Any:
    run_start = select(JobRun.started_at).where(JobRun.job_id == job_id, JobRun.fence == fence).scalar_subquery()
    return run_start + cast(func.make_interval(0, 0, 0, 0, 0, 0, seconds), Interval)


def _from_now(seconds: float) -> Any:
    return func.clock_timestamp() + timedelta(seconds=seconds)


def _lost(held: Held) -> LeaseLost:
    return LeaseLost(f"{held.job_id} is no longer held with fence {held.fence}")
