"""What holders of jobs tell PostgreSQL and hear from it, and what their writes share: see `penstock.jobs.lease`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from penstock.errors import LeaseLost
from penstock.jobs.journal import JournalEntry, pack_entries, unpack_entries
from penstock.jobs.models import Job, JobJournal
from penstock.jobs.states import JobState, RunOutcome
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
    """How a job ended. `entries` is its whole journal; the output is assembled from it, unless `output` is given.

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
    output: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)


_STORE: Final = text(
    """
    INSERT INTO job_journal (job_id, fence, length, entries)
    SELECT * FROM unnest(
        CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:lengths AS integer[]), CAST(:entries AS bytea[])
    ) AS told (job_id, fence, length, entries)
    ON CONFLICT (job_id) DO UPDATE
        SET fence = excluded.fence, length = excluded.length, entries = excluded.entries, updated_at = now()
        WHERE job_journal.fence <= excluded.fence
    """
)


def store_journals(session: Session, journals: Sequence[tuple[Held, Sequence[JournalEntry]]]) -> None:
    """Keep each job's journal in place of what was kept of it, unless a later holder kept that."""
    session.execute(
        _STORE,
        {
            "ids": [held.job_id for held, _ in journals],
            "fences": [held.fence for held, _ in journals],
            "lengths": [len(entries) for _, entries in journals],
            "entries": [pack_entries(entries) for _, entries in journals],
        },
    )


def load_checkpoint(session: Session, job_id: str) -> list[JournalEntry]:
    """What PostgreSQL has of the job's journal."""
    return unpack_journal(session.scalar(select(JobJournal.entries).where(JobJournal.job_id == job_id)))


def unpack_journal(data: bytes | None) -> list[JournalEntry]:
    """The entries as a row keeps them; none where there is no row."""
    return unpack_entries(data) if data is not None else []


def computed_input(prompt_tokens: int, cached_tokens: int, computed_tokens: int, output_tokens: int) -> int:
    """How much of the prompt has been computed: all that was not cached, once there is output."""
    uncached = prompt_tokens - cached_tokens
    return uncached if output_tokens else min(uncached, computed_tokens)


def lost(held: Held) -> LeaseLost:
    """What a write raises that was refused for its fence."""
    return LeaseLost(f"{held.job_id} is no longer held with fence {held.fence}")
