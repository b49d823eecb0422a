"""Tables `metric_point` and `metric_progress`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class MetricPoint(Base):
    """What one series with one set of labels came to in one minute or hour. No tenant stands in it, and no text of one.

    `count` is how many observations there were, `total` their sum and `peak` the greatest. Distributions have `buckets`
    besides (`penstock.rollups.histogram`): how many observations fell in each, by its number.
    """

    __tablename__ = "metric_point"
    __table_args__ = (CheckConstraint("step IN (60, 3600)", name="step"),)

    step: Mapped[int] = mapped_column(primary_key=True)
    """Its length in seconds."""
    series: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    labels: Mapped[dict[str, Any]] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[float]
    peak: Mapped[float]
    buckets: Mapped[dict[str, Any]] = mapped_column(server_default="{}")


class MetricProgress(Base):
    """How far the points are written. Whoever writes some holds its row, so nothing is counted by two."""

    __tablename__ = "metric_progress"

    name: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
    """The first moment that is counted; of earlier ones nothing is known."""
    through: Mapped[datetime]
    """Counts: before it they are final. Samples: the moment of the last one."""
