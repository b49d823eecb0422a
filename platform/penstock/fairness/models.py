"""Table `fair_share`."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class FairShare(Base):
    """A tenant's virtual token counter on one deployment: the cost of its tokens so far, divided by its weight.

    Whoever has the lowest goes first. `charged_at` tells who was served last, which is the floor while nobody waits.
    """

    __tablename__ = "fair_share"
    __table_args__ = (CheckConstraint("charged >= 0 AND charged < 'Infinity'", name="charged"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id", ondelete="CASCADE"), primary_key=True)
    charged: Mapped[float] = mapped_column(server_default="0")
    charged_at: Mapped[datetime] = mapped_column(server_default=func.now())
