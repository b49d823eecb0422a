"""Tables `rollout`, `gate_result` (how gates stand), `decision` (the ledger of moves) and `controller_lease`; of its
gates also `gate_point` (what charts show) and `offline_evaluation`; and `rollout_policy`, by model and number.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, SmallInteger, UniqueConstraint, func, text
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
        UniqueConstraint("started_by", "idempotency_key"),
        Index("ix_rollout_clearing", "candidate_id", postgresql_where=text("clearing")),
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

    # What a submit wants to know without reading the policy, written with every move
    share: Mapped[float] = mapped_column(server_default="0")
    """Of new jobs: the candidate's, or in the shadow those that it is to score."""
    unit: Mapped[str] = mapped_column(server_default="job")
    """What is assigned as one, as in `rollouts.assignment.Unit`."""

    # How evidence is gathered
    stage_started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Since when it is in this stage, all of its steps and pauses together."""
    thresholds: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """Seconds beyond which a job of the stage is slow, by stratum: frozen once they are known."""
    judged_until: Mapped[datetime | None]
    """Until when the stage's feedback was read."""
    started_by: Mapped[str | None] = mapped_column(ForeignKey("tenant.id", ondelete="SET NULL"))
    """The operator's tenant, which the offline gate's evaluation belongs to."""
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[bytes | None]

    # What becomes of jobs once it has ended
    clearing: Mapped[bool] = mapped_column(server_default="false")
    """Those that wait for its candidate are still to be sent to the champion, and may not be claimed before."""

    # What the controller says of it
    note: Mapped[str | None]
    """Why the candidate takes no jobs now, though its gate gives it a share."""
    told: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Up to which of its decisions MLflow has been told."""

    @property
    def position(self) -> Position:
        return Position(State(self.state), self.step, State(self.paused_in) if self.paused_in else None)


class Assignment(Base):
    """Which arm of a rollout a job is on, from its submit on; in the shadow, that the candidate is to score it."""

    __tablename__ = "assignment"
    __table_args__ = (
        CheckConstraint("stage IN ('shadow', 'canary', 'ab')", name="stage"),
        CheckConstraint("arm IN ('champion', 'candidate')", name="arm"),
        CheckConstraint("(unit = 'job') = (key IS NULL)", name="key_of_sticky"),
        Index("ix_assignment_uncounted", "rollout_id", "job_id", postgresql_where=text("counted_at IS NULL")),
        Index("ix_assignment_unseen", "rollout_id", "job_id", postgresql_where=text("NOT seen")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"))
    stage: Mapped[str]
    step: Mapped[int] = mapped_column(SmallInteger)
    arm: Mapped[str]
    share: Mapped[float]
    """The rollout's, when the job was submitted."""
    unit: Mapped[str]
    key: Mapped[str | None]
    """Of a user or tenant: a digest, which tells nothing but that two jobs have the same."""
    assigned_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen: Mapped[bool] = mapped_column(server_default="false")
    """Its unit is counted."""
    late: Mapped[bool] = mapped_column(server_default="false")
    """It was counted as slow while it ran, and is not again."""
    counted_at: Mapped[datetime | None]
    """Since when what came of it is counted, too; none while it goes on."""


class AssignedUnit(Base):
    """A user or tenant of a stage, with what was counted of them: each thing once."""

    __tablename__ = "assigned_unit"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    first_job: Mapped[str]
    candidate_step: Mapped[int | None] = mapped_column(SmallInteger)
    """The last step that the candidate had them in."""
    failed: Mapped[bool] = mapped_column(server_default="false")
    slow: Mapped[bool] = mapped_column(server_default="false")
    judged: Mapped[bool] = mapped_column(server_default="false")


class GateResult(Base):
    """What one gate has seen so far, and its last judgement of that."""

    __tablename__ = "gate_result"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    evidence: Mapped[dict[str, Any]]
    judgement: Mapped[dict[str, Any]]
    judged_at: Mapped[datetime]


class GatePoint(Base):
    """How a gate stood at one moment, for charts: a sample of its judgements, closer where they are young."""

    __tablename__ = "gate_point"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    verdict: Mapped[str]
    jobs_needed: Mapped[int | None]
    guards: Mapped[dict[str, Any]]
    """Of each guardrail its `verdict` and figures."""


class OfflineEvaluation(Base):
    """A job that compares a rollout's candidate with its reference. Rows go when the gate is left."""

    __tablename__ = "offline_evaluation"
    __table_args__ = (Index("ix_offline_evaluation_job_id", "job_id"),)

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"))


class StoredPolicy(Base):
    """The policy of a model's rollouts, where none is given when one starts: that of the highest number."""

    __tablename__ = "rollout_policy"

    model_name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    policy: Mapped[dict[str, Any]]
    policy_version: Mapped[str]
    actor_kind: Mapped[str]
    actor_id: Mapped[str]
    actor_name: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Decision(Base):
    """One move: who made it, by which policy, on what evidence. Never altered: the database refuses that.

    Those without a rollout are moves of an alias by hand, in MLflow.
    """

    __tablename__ = "decision"
    __table_args__ = (
        Index("ix_decision_rollout", "rollout_id", "number", unique=True),
        Index("ix_decision_by_hand", "model_name", "number", unique=True, postgresql_where=text("rollout_id IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_name: Mapped[str] = mapped_column(server_default="")
    rollout_id: Mapped[str | None] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(BigInteger)
    """The rollout's fence after the move, 1 is its beginning; or, of moves by hand, the model's count of them."""
    move: Mapped[str]
    from_state: Mapped[str | None]
    from_step: Mapped[int | None] = mapped_column(SmallInteger)
    to_state: Mapped[str | None]
    to_step: Mapped[int | None] = mapped_column(SmallInteger)
    from_version: Mapped[str | None]
    """Which version jobs went to before, and after: the champion's."""
    to_version: Mapped[str | None]
    artifacts: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """`champion` and `candidate`, or by hand `from` and `to`: each one's version, and the digest of its files."""
    jobs: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    """`failed`: the candidate's that did, and `rerouted`: those that went to the champion; how many, and ids."""
    actor_kind: Mapped[str]
    actor_id: Mapped[str]
    actor_name: Mapped[str]
    reason: Mapped[str | None]
    """An operator's own words, or what the controller says where there is no judgement."""
    policy_version: Mapped[str | None]
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
