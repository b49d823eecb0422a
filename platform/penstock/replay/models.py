"""Tables `replay` and `comparison` (of two versions on one stored job, for a replay or a rollout's shadow)."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base, one_of


class ReplayState(StrEnum):
    """Where a replay stands: it lists the jobs that it is about, then compares them. The last two stay.

    gathering ──▶ running ──▶ completed
        └────────────┴──────▶ cancelled
    """

    GATHERING = "gathering"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Mode(StrEnum):
    """How the candidate is compared: it scores the stored answers, it writes answers of its own, or both."""

    TEACHER = "teacher"
    FREE = "free"
    BOTH = "both"


class ComparisonState(StrEnum):
    """Where a comparison stands. A `lost` one says why in `problem`; a `dropped` one is no longer wanted."""

    WAITING = "waiting"
    UNDER_WAY = "under_way"
    DONE = "done"
    LOST = "lost"
    DROPPED = "dropped"


UNFINISHED: Final = (ReplayState.GATHERING, ReplayState.RUNNING)


class Replay(Base):
    """Stored jobs of `reference_id` against `candidate_id`, at the lowest class. `filter` says which jobs.

    A control process that works at it holds its row for one short transaction, so a crash undoes a step as a whole.
    """

    __tablename__ = "replay"
    __table_args__ = (
        CheckConstraint(one_of("state", ReplayState), name="state"),
        CheckConstraint(one_of("mode", Mode), name="mode"),
        CheckConstraint("done + lost <= total", name="no_more_than_all"),
        CheckConstraint("(state IN ('gathering', 'running')) = (finished_at IS NULL)", name="finished_at_when_final"),
        Index("ix_replay_due", "due_at", postgresql_where=text("state IN ('gathering', 'running')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(server_default=ReplayState.GATHERING.value)
    mode: Mapped[str]
    model_name: Mapped[str]
    candidate_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    reference_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    filter: Mapped[dict[str, Any]]
    """`since`, `until`, `tenant`, `limit`."""
    actor: Mapped[dict[str, Any]]
    gathered_to: Mapped[str | None]
    """The last job that was listed; what follows has smaller ids."""
    total: Mapped[int] = mapped_column(server_default="0")
    done: Mapped[int] = mapped_column(server_default="0")
    lost: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class Comparison(Base):
    """Two versions on one finished job. It goes with that job, as the internal jobs do that it names.

    The internal jobs are deleted once their figures are here; their ids are null then.
    """

    __tablename__ = "comparison"
    __table_args__ = (
        CheckConstraint(one_of("state", ComparisonState), name="state"),
        CheckConstraint("num_nonnulls(rollout_id, replay_id) = 1", name="one_purpose"),
        CheckConstraint("(state = 'lost') = (problem IS NOT NULL)", name="lost_with_problem"),
        UniqueConstraint("rollout_id", "source_id", name="uq_comparison_rollout_source"),
        UniqueConstraint("replay_id", "source_id", name="uq_comparison_replay_source"),
        Index("ix_comparison_source", "source_id"),
        *(
            Index(
                f"ix_comparison_unsettled_of_{of}",
                f"{of}_id",
                "state",
                "id",
                postgresql_where=text("state IN ('waiting', 'under_way')"),
            )
            for of in ("rollout", "replay")
        ),
        Index(
            "ix_comparison_dropped",
            "id",
            postgresql_where=text("state = 'dropped' AND num_nonnulls(reference_job, candidate_job, free_job) > 0"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    rollout_id: Mapped[str | None] = mapped_column(ForeignKey("rollout.id", ondelete="CASCADE"))
    replay_id: Mapped[str | None] = mapped_column(ForeignKey("replay.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(server_default=ComparisonState.WAITING.value)
    reference_job: Mapped[str | None]
    """Scores the answer on the version that gave it."""
    candidate_job: Mapped[str | None]
    """Scores the answer on the other version."""
    free_job: Mapped[str | None]
    """Answers anew on the other version."""
    problem: Mapped[str | None]
    mean_kld: Mapped[float | None]
    """Of `scored`, to order by: nats a token, at least."""
    disagreement: Mapped[float | None]
    scored: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """`rollouts.scoring.Scored`: how far the versions are apart on the answer's tokens."""
    free: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """`replay.answers.Freed`: how the new answer differs from the stored one."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]
