"""The table `feedback`."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class Feedback(Base):
    """One judgement of a job's answer. It names the version that gave the answer, so that versions can be compared."""

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("score BETWEEN 0 AND 1", name="score"),
        CheckConstraint("score IS NOT NULL OR label IS NOT NULL", name="says_something"),
        CheckConstraint("(idempotency_key IS NULL) = (fingerprint IS NULL)", name="key_with_fingerprint"),
        Index("ix_feedback_job", "job_id", "id"),
        Index("ix_feedback_deployment", "deployment_id", "created_at"),
        Index(
            "uq_feedback_idempotency_key",
            "tenant_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    choice: Mapped[int | None] = mapped_column(SmallInteger)
    """Which choice is judged; none for the answer as a whole."""
    score: Mapped[float | None]
    label: Mapped[str | None]
    comment: Mapped[str | None]
    user: Mapped[str | None]
    """Whom the sender names as the one who judges."""
    api_key_id: Mapped[str]
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id"))
    model_name: Mapped[str]
    model_version: Mapped[str]
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
