"""Table `dead_letter`."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class DeadLetter(Base):
    """A job that was given up, until an operator has it run again or puts it away."""

    __tablename__ = "dead_letter"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'replayed', 'discarded')", name="state"),
        CheckConstraint("(state = 'open') = (settled_at IS NULL)", name="settled_at_when_settled"),
        CheckConstraint("(state = 'replayed') = (replay_job_id IS NOT NULL)", name="job_when_replayed"),
        Index("ix_dead_letter_group", "state", "reason", "model_name", "model_version", text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), unique=True)
    reason: Mapped[str]
    """The code of the job's error."""
    message: Mapped[str]
    model_name: Mapped[str]
    model_version: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="open")
    replay_job_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]
    settled_by: Mapped[str | None]
    """The id of the key that settled it."""
