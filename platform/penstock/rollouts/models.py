"""Tables `rollout`, `gate_result` (how gates stand), `decision` (the ledger of moves) and `controller_lease`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base
from penstock.rollouts.states import Position, State

UNDER_WAY = tuple(str(state) for state in State if not state.final and state is not State.PROMOTED)
"""The states of a rollout that keeps its model from having another."""


def _one_of(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


class Rollout(Base):
    """A candidate's way towards serving its model's jobs. `penstock.rollouts.states` says how it moves.

    The policy is the document in full, as it was when the rollout began. `fence` counts the moves: whoever judged an
    older position finds another number here. `seed` makes its assignment independent of every other rollout's.
    """

    __tablename__ = "rollout"
    __table_args__ = (
        CheckConstraint(f"state IN ({_one_of(tuple(State))})", name="state"),
        CheckConstraint("(state = 'paused') = (paused_in IS NOT NULL)", name="paused_in_with_paused"),
        CheckConstraint("candidate_id <> champion_id", name="two_versions"),
        Index(
            "uq_rollout_under_way",
            "model_name",
            unique=True,
            postgresql_where=text(f"state IN ({_one_of(UNDER_WAY)})"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str]
    candidate_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    champion_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    policy: Mapped[dict[str, Any]]
    policy_version: Mapped[str]
    seed: Mapped[str]
    state: Mapped[str]
    step: Mapped[int] = mapped_column(SmallInteger)
    paused_in: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    entered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Since when it is in this state, or step."""

    @property
    def position(self) -> Position:
        return Position(State(self.state), self.step, State(self.paused_in) if self.paused_in else None)


class GateResult(Base):
    """What one gate has seen so far, and its last judgement of that."""

    __tablename__ = "gate_result"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    evidence: Mapped[dict[str, Any]]
    judgement: Mapped[dict[str, Any]]
    judged_at: Mapped[datetime]


class Decision(Base):
    """One move: who made it, by which policy, on what evidence. Never altered: the database refuses that."""

    __tablename__ = "decision"
    __table_args__ = (Index("ix_decision_rollout", "rollout_id", "number", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(BigInteger)
    """The rollout's fence after the move: 1 is its beginning."""
    move: Mapped[str]
    from_state: Mapped[str | None]
    from_step: Mapped[int | None] = mapped_column(SmallInteger)
    to_state: Mapped[str]
    to_step: Mapped[int] = mapped_column(SmallInteger)
    actor_kind: Mapped[str]
    actor_id: Mapped[str]
    actor_name: Mapped[str]
    reason: Mapped[str | None]
    """An operator's own words."""
    policy_version: Mapped[str]
    judgement: Mapped[dict[str, Any] | None]
    evidence: Mapped[dict[str, Any] | None]
    decided_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ControllerLease(Base):
    """Who may do what only one process may: whoever has the fence, until it expires by the database's clock."""

    __tablename__ = "controller_lease"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    fence: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]
