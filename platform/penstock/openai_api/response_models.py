"""The table `response`: what a job does not know of the response that it serves."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class StoredResponse(Base):
    """A response that can be fetched, told again and gone on with. Its job holds the conversation and the output."""

    __tablename__ = "response"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), unique=True)
    told: Mapped[dict[str, Any]] = mapped_column(JSON)  # not jsonb: a schema's properties keep their order
    """How it was asked for, as every document of it says."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
