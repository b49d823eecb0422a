"""What operators do with dead letters: look, have the job run again, put it away. Takes a session, never commits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.dead_letters.models import DeadLetter
from penstock.errors import DeadLetterSettled, NotFound
from penstock.jobs.models import Job, JobRun

LetterState = Literal["open", "replayed", "discarded"]
Replay = Callable[[str, str, str | None], str]
"""Submits the request of a job again, given its tenant, its id and its key; answers with the new job's id."""


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters; None means all."""

    state: str | None = "open"
    reason: str | None = None
    model: str | None = None
    version: str | None = None
    tenant_id: str | None = None
    created_before: datetime | None = None

    def conditions(self) -> list[Any]:
        """The same as SQL."""
        equal = [
            column == value
            for column, value in (
                (DeadLetter.state, self.state),
                (DeadLetter.reason, self.reason),
                (DeadLetter.model_name, self.model),
                (DeadLetter.model_version, self.version),
                (DeadLetter.tenant_id, self.tenant_id),
            )
            if value is not None
        ]
        return equal if self.created_before is None else [*equal, DeadLetter.created_at <= self.created_before]


@dataclass(frozen=True, slots=True)
class Group:
    """Open letters of one reason and model version. `latest_id` is the newest of them."""

    reason: str
    model_name: str
    model_version: str
    count: int
    tenants: int
    first_at: datetime
    latest_at: datetime
    latest_id: str


def groups(session: Session) -> list[Group]:
    """All open letters by why they were given up and on which version, the latest group first."""
    by = (DeadLetter.reason, DeadLetter.model_name, DeadLetter.model_version)
    latest_at = func.max(DeadLetter.created_at)
    counted = select(
        *by,
        func.count(),
        func.count(DeadLetter.tenant_id.distinct()),
        func.min(DeadLetter.created_at),
        latest_at,
        func.max(DeadLetter.id),
    ).where(DeadLetter.state == "open")
    return [Group(*row) for row in session.execute(counted.group_by(*by).order_by(latest_at.desc()))]


def list_letters(
    session: Session, wanted: LetterFilter, *, limit: int, before: str | None = None
) -> tuple[list[DeadLetter], str | None]:
    """A page of letters, newest first, and the cursor of the next page (a letter's id) if there is one."""
    query = select(DeadLetter).where(*wanted.conditions())
    if before is not None:
        query = query.where(DeadLetter.id < before)
    found = list(session.scalars(query.order_by(DeadLetter.id.desc()).limit(limit + 1)))
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def get(session: Session, letter_id: str, *, lock: bool = False) -> DeadLetter:
    """The letter. Raises `NotFound`."""
    query = select(DeadLetter).where(DeadLetter.id == letter_id)
    letter = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if letter is None:
        raise NotFound(f"no dead letter {letter_id!r}", field="id")
    return letter


def story(session: Session, letter: DeadLetter) -> tuple[Job, Sequence[JobRun]]:
    """The job that was given up, and its runs in order: who had it, when, and how that ended."""
    runs = select(JobRun).where(JobRun.job_id == letter.job_id).order_by(JobRun.fence)
    return session.get_one(Job, letter.job_id), session.scalars(runs).all()


def replay(session: Session, letter_id: str, actor: Actor, submit: Replay) -> DeadLetter:
    """Have the job's request run again as a new job of its tenant, within the tenant's limits.

    Asking again changes nothing. Raises `DeadLetterSettled` for a discarded one, and what a submit raises.
    """
    letter = get(session, letter_id, lock=True)
    if letter.state == "replayed":
        return letter
    _refuse_settled(letter)
    key = session.scalar(select(Job.api_key_id).where(Job.id == letter.job_id))
    made = submit(letter.tenant_id, letter.job_id, key)
    _settle(session, letter, actor, state="replayed", replay_job_id=made)
    _record(session, letter, actor, Action.DEAD_LETTER_REPLAYED)
    return letter


def discard(session: Session, letter_id: str, actor: Actor) -> DeadLetter:
    """Put the letter away; the job stays failed. Asking again changes nothing.

    Raises `DeadLetterSettled` for a replayed one.
    """
    letter = get(session, letter_id, lock=True)
    if letter.state == "discarded":
        return letter
    _refuse_settled(letter)
    _settle(session, letter, actor, state="discarded")
    _record(session, letter, actor, Action.DEAD_LETTER_DISCARDED)
    return letter


def _refuse_settled(letter: DeadLetter) -> None:
    if letter.state != "open":
        raise DeadLetterSettled(f"{letter.id} was {letter.state} before", status_now=letter.state)


def _settle(session: Session, letter: DeadLetter, actor: Actor, **values: str) -> None:
    now = session.scalars(select(func.clock_timestamp())).one()
    for name, value in (values | {"settled_at": now, "settled_by": actor.id}).items():
        setattr(letter, name, value)


def _record(session: Session, letter: DeadLetter, actor: Actor, action: Action) -> None:
    told = {"job": letter.job_id, "reason": letter.reason, "replay": letter.replay_job_id}
    record(session, actor, action, tenant_id=letter.tenant_id, target=letter.id, details=told)
