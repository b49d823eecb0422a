"""Table `usage_entry`."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class UsageEntry(Base):
    """What one finished job consumed. One row a job, written in the transaction that finishes it, so never twice."""

    __tablename__ = "usage_entry"
    __table_args__ = (Index("ix_usage_entry_tenant_time", "tenant_id", "created_at"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    model_name: Mapped[str]
    model_version: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]
    run_milliseconds: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
