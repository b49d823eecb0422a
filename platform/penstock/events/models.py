"""Tables `feed_event` (what happened, in a tenant's one order) and `feed_head` (how far that order has come)."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class FeedEvent(Base):
    """One event of a tenant. A trigger copies the jobs' here; it gets its `position` once it is committed."""

    __tablename__ = "feed_event"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "event_number"], ["event.job_id", "event.number"], ondelete="CASCADE"),
        UniqueConstraint("tenant_id", "position"),
        Index("ix_feed_event_job_id", "job_id"),
        Index("ix_feed_event_unplaced", "id", postgresql_where=text("position IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    position: Mapped[int | None] = mapped_column(BigInteger)
    """Counts from 1 within the tenant."""
    type: Mapped[str]
    job_id: Mapped[str | None]
    event_number: Mapped[int | None]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class FeedHead(Base):
    """The last position that a tenant's feed has given out."""

    __tablename__ = "feed_head"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
