"""Table `placement`: where and how a deployment should be hosted. One that has no row is everywhere, and warm."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Float, ForeignKey, Text, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class Placement(Base):
    """What an operator wants of a deployment. Null leaves it to the workers.

    `workers` are host names and labels, any of which will do; `replicas` is on how many of those workers; `kv_share` is
    of a device's memory for K and V. A `cold` one is loaded while jobs wait for it, and for `idle_seconds` after.
    """

    __tablename__ = "placement"
    __table_args__ = (
        CheckConstraint("mode IN ('warm', 'cold')", name="mode"),
        CheckConstraint("replicas >= 0", name="replicas"),
        CheckConstraint("kv_share > 0 AND kv_share <= 1", name="kv_share"),
    )

    deployment_id: Mapped[str] = mapped_column(ForeignKey("deployment.id", ondelete="CASCADE"), primary_key=True)
    workers: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    replicas: Mapped[int | None]
    kv_share: Mapped[float | None] = mapped_column(Float())
    mode: Mapped[str] = mapped_column(server_default="warm")
    idle_seconds: Mapped[float] = mapped_column(Float(), server_default="300")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
