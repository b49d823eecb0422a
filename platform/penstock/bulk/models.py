"""Tables `bulk_operation` and `bulk_item`."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from penstock.bulk.states import BulkAction, BulkState, ItemState
from penstock.db import Base, one_of


class BulkOperation(Base):
    """One act on all that a filter names.

    A control process that works at it holds its row for one short transaction, in which the items, what is done to
    them and the counts change together: so a crash undoes a step as a whole, and nothing is done twice.
    """

    __tablename__ = "bulk_operation"
    __table_args__ = (
        CheckConstraint(one_of("state", BulkState), name="state"),
        CheckConstraint(one_of("action", BulkAction), name="action"),
        CheckConstraint("done + skipped + failed <= total", name="no_more_than_all"),
        CheckConstraint("(state IN ('gathering', 'running')) = (finished_at IS NULL)", name="finished_at_when_final"),
        UniqueConstraint("tenant_id", "idempotency_key"),
        Index("ix_bulk_operation_tenant", "tenant_id", text("id DESC")),
        Index("ix_bulk_operation_due", "due_at", postgresql_where=text("state IN ('gathering', 'running')")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    state: Mapped[str] = mapped_column(server_default=BulkState.GATHERING.value)

    # What was asked, and by whom
    action: Mapped[str]
    filter: Mapped[dict[str, Any]]
    actor: Mapped[dict[str, Any]]
    """Who began it, as the record of changes names them."""
    api_key_id: Mapped[str | None]
    allowed_models: Mapped[list[str] | None]
    """The models that the key may use; null is all."""
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[bytes | None]

    # How far it has come
    gathered_to: Mapped[str | None]
    """The last target that was listed; what follows has smaller ids."""
    truncated: Mapped[bool] = mapped_column(server_default="false")
    blocker: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """Why it waits just now."""
    total: Mapped[int] = mapped_column(server_default="0")
    done: Mapped[int] = mapped_column(server_default="0")
    skipped: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class BulkItem(Base):
    """One job or dead letter that an operation is about. `result_id` is the job that a replay made."""

    __tablename__ = "bulk_item"
    __table_args__ = (
        CheckConstraint(one_of("state", ItemState), name="state"),
        CheckConstraint("state <> 'failed' OR error IS NOT NULL", name="failed_with_error"),
        Index("ix_bulk_item_ready", "operation_id", "target_id", postgresql_where=text("state = 'ready'")),
        Index("ix_bulk_item_failed", "operation_id", "target_id", postgresql_where=text("state = 'failed'")),
    )

    operation_id: Mapped[str] = mapped_column(ForeignKey("bulk_operation.id", ondelete="CASCADE"), primary_key=True)
    target_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(server_default=ItemState.READY.value)
    result_id: Mapped[str | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
