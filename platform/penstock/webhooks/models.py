"""Tables `webhook_delivery` (event x address) and `webhook_attempt` (one HTTP try)."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class WebhookDelivery(Base):
    """One event on its way to one address. Its retries are this row's `next_attempt_at`, never a queue's countdown."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("status IN ('waiting', 'delivered', 'failed')", name="status"),
        CheckConstraint("(status = 'waiting') = (next_attempt_at IS NOT NULL)", name="next_attempt_while_waiting"),
        ForeignKeyConstraint(["job_id", "event_number"], ["event.job_id", "event.number"], ondelete="CASCADE"),
        Index("ix_webhook_delivery_due", "next_attempt_at", postgresql_where=text("status = 'waiting'")),
        Index("ix_webhook_delivery_job_id", "job_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    job_id: Mapped[str]
    event_number: Mapped[int]
    url: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default="waiting")
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """One HTTP try of a delivery and what came back."""

    __tablename__ = "webhook_attempt"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_delivery.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    milliseconds: Mapped[int]
    status_code: Mapped[int | None]
    response_body: Mapped[str | None]
    error: Mapped[str | None]
