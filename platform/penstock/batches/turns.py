"""Turns: which control process works at which batch. Nobody leads, and a turn that was slept through is lost.

Who takes a batch raises its fence. Every transaction of the turn holds the batch's row under that fence, so whatever a
process that woke too late would write, it does not.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from penstock.batches.models import Batch
from penstock.batches.states import UNFINISHED

TURN_SECONDS: Final = 30


class TurnLost(Exception):
    """Another process has the batch."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to work at a batch, as long as its fence is this one."""

    batch_id: str
    fence: int


def take(session: Session) -> Turn | None:
    """The batch that has waited longest for its turn; None when none is due."""
    now = func.clock_timestamp()
    due = (
        select(Batch.id)
        .where(
            Batch.state.in_(UNFINISHED),
            Batch.due_at <= now,
            or_(Batch.taken_until.is_(None), Batch.taken_until < now),
        )
        .order_by(Batch.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    taken = session.execute(
        update(Batch)
        .where(Batch.id == due)
        .values(fence=Batch.fence + 1, taken_until=_turn_end())
        .returning(Batch.id, Batch.fence)
    ).one_or_none()
    return Turn(*taken) if taken is not None else None


def hold(session: Session, turn: Turn) -> Batch:
    """The batch, locked and as it is now; the turn lasts on. Raises `TurnLost`."""
    batch = session.scalars(
        select(Batch).where(Batch.id == turn.batch_id, Batch.fence == turn.fence).with_for_update()
    ).one_or_none()
    if batch is None:
        raise TurnLost(turn.batch_id)
    batch.taken_until = _turn_end()
    return batch


def give_back(session: Session, turn: Turn, *, again_in: float) -> None:
    """End the turn; the next comes in so many seconds, or sooner when somebody changes the batch."""
    session.execute(
        update(Batch)
        .where(Batch.id == turn.batch_id, Batch.fence == turn.fence)
        .values(taken_until=None, due_at=func.clock_timestamp() + timedelta(seconds=again_in))
    )


def _turn_end() -> Any:
    return func.clock_timestamp() + timedelta(seconds=TURN_SECONDS)
