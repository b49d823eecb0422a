"""Tables `batch` and `batch_line`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, SmallInteger, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from penstock.batches.states import PAUSED, BatchState, LineState
from penstock.db import Base, one_of


class Batch(Base):
    """A file of requests on its way.

    Control processes work at it in turns: who takes it raises `fence`, and every transaction of that turn holds the
    row with that fence. Its counts change in the transactions that settle lines, and nowhere else.
    """

    __tablename__ = "batch"
    __table_args__ = (
        CheckConstraint(one_of("state", BatchState), name="state"),
        CheckConstraint("invalid_lines IN ('refuse', 'skip')", name="invalid_lines"),
        CheckConstraint("ends_as IN ('completed', 'expired')", name="ends_as"),
        CheckConstraint(
            "settled = succeeded_lines + failed_lines + cancelled_lines + expired_lines + invalid_lines_found",
            name="settled_is_the_sum",
        ),
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_batch_tenant", "tenant_id", text("id DESC")),
        Index(
            "ix_batch_due",
            "due_at",
            postgresql_where=text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
        ),
        Index("ix_batch_input_file", "input_file_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    state: Mapped[str] = mapped_column(server_default=BatchState.VALIDATING.value)

    # What was asked
    input_file_id: Mapped[str]
    endpoint: Mapped[str]
    completion_window: Mapped[str]
    invalid_lines: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    user_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", server_default="{}")
    allowed_models: Mapped[list[str] | None]
    """The models that the key may use which made it; null is all."""
    api_key_id: Mapped[str | None]
    output_expires_seconds: Mapped[int | None]
    retry_of: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[bytes | None]
    ends_as: Mapped[str | None]
    """What it will be when it is finalized."""
    blocker: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """Why no job could be made of its next line just now."""

    # Whose turn it is
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    taken_until: Mapped[datetime | None]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())

    # How far the input was read
    read_lines: Mapped[int] = mapped_column(server_default="0")
    read_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    error_count: Mapped[int] = mapped_column(server_default="0")
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")

    # How many lines, and what came of those that are settled
    total_lines: Mapped[int] = mapped_column(server_default="0")
    settled: Mapped[int] = mapped_column(server_default="0")
    succeeded_lines: Mapped[int] = mapped_column(server_default="0")
    failed_lines: Mapped[int] = mapped_column(server_default="0")
    cancelled_lines: Mapped[int] = mapped_column(server_default="0")
    expired_lines: Mapped[int] = mapped_column(server_default="0")
    invalid_lines_found: Mapped[int] = mapped_column(server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]

    # When, by the database's clock
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    resumed_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    @property
    def status(self) -> str:
        """Its state, or that it is paused."""
        return PAUSED if self.paused_at is not None and self.state == BatchState.IN_PROGRESS else self.state


class BatchLine(Base):
    """One line of a batch's input: where it stands in the file, its job, and what came of it.

    `position` counts the settled lines of the batch from 1 in the order in which they were settled.
    """

    __tablename__ = "batch_line"
    __table_args__ = (
        CheckConstraint(one_of("state", LineState), name="state"),
        CheckConstraint("(state IN ('ready', 'open')) = (position IS NULL)", name="position_when_settled"),
        CheckConstraint("state <> 'open' OR job_id IS NOT NULL", name="open_with_job"),
        UniqueConstraint("batch_id", "position"),
        Index(
            "uq_batch_line_custom_id",
            "batch_id",
            "custom_id",
            unique=True,
            postgresql_where=text("state <> 'invalid'"),
        ),
        Index("ix_batch_line_ready", "batch_id", "line", postgresql_where=text("state = 'ready'")),
        Index("ix_batch_line_open", "batch_id", "job_id", postgresql_where=text("state = 'open'")),
    )

    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(server_default=LineState.READY.value)
    custom_id: Mapped[str | None]
    start: Mapped[int] = mapped_column(BigInteger)
    """Where it begins in the input file, in bytes."""
    length: Mapped[int]
    echo: Mapped[bool] = mapped_column(server_default="false")
    """Whether a completion tells its prompt again, which its job does not know."""
    job_id: Mapped[str | None]
    position: Mapped[int | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """Why it has no job."""
    settled_at: Mapped[datetime | None]
