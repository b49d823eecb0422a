"""Table `compression`: what a job of these kinds works on, what it has made, and what became of that in MLflow."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class Compression(Base):
    """Beside its job's row. The worker writes `made`, the control process `published` or `problem`, once each."""

    __tablename__ = "compression"
    __table_args__ = (
        Index(
            "ix_compression_unpublished",
            "made_at",
            postgresql_where=text("made IS NOT NULL AND published IS NULL AND problem IS NULL"),
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[dict[str, Any]]
    """The version that the job was submitted for (`versions.FiledVersion`)."""
    against: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """Of an evaluation: the version that it is compared with."""
    made: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    made_at: Mapped[datetime | None]
    published: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """`code` and `message` of why MLflow does not take it."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
