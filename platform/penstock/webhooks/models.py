"""Tables `webhook_endpoint`, `webhook_delivery` (event x address) and `webhook_attempt` (one HTTP try)."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class WebhookEndpoint(Base):
    """An address that a tenant keeps for the events of all its jobs."""

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("(failures = 0) = (failing_since IS NULL)", name="failing_since"),
        CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled_reason"),
        CheckConstraint("(previous_secret IS NULL) = (previous_secret_until IS NULL)", name="previous_secret_until"),
        Index("ix_webhook_endpoint_tenant_id", "tenant_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    url: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    events: Mapped[list[str]]
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_secret_until: Mapped[datetime | None]
    """Until then attempts are signed with both secrets."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed since the last one that did not."""
    failing_since: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """One event on its way to one address. Its retries are this row's `next_attempt_at`, never a queue's countdown."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("status IN ('waiting', 'delivered', 'failed')", name="status"),
        CheckConstraint("(job_id IS NULL) = (event_number IS NULL)", name="event_of_job"),
        CheckConstraint("(status = 'waiting') = (next_attempt_at IS NOT NULL)", name="next_attempt_while_waiting"),
        ForeignKeyConstraint(["job_id", "event_number"], ["event.job_id", "event.number"], ondelete="CASCADE"),
        Index("ix_webhook_delivery_due", "next_attempt_at", postgresql_where=text("status = 'waiting'")),
        Index("ix_webhook_delivery_job_id", "job_id"),
        Index("ix_webhook_delivery_tenant", "tenant_id", text("id DESC")),
        Index("ix_webhook_delivery_endpoint", "endpoint_id", text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoint.id", ondelete="CASCADE"))
    """Null for a job's own address."""
    job_id: Mapped[str | None]
    event_number: Mapped[int | None]
    url: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default="waiting")
    attempts: Mapped[int] = mapped_column(server_default="0")
    replayed_after: Mapped[int] = mapped_column(server_default="0")
    """The attempts before the last replay, with which the schedule began anew."""
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
