"""Writing points: replaced where they are counted anew, added to where they are samples, folded into hours, deleted."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import bindparam, delete, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from penstock.rollups.counting import Point
from penstock.rollups.models import MetricPoint

MINUTE: Final = 60
HOUR: Final = 3600
MINUTES_KEPT: Final = timedelta(days=3)
HOURS_KEPT: Final = timedelta(days=92)

_WRITE: Final = """
    INSERT INTO metric_point (step, series, at, labels, count, total, peak, buckets)
    SELECT 60, series, at, labels, count, total, peak, buckets FROM jsonb_to_recordset(:points) AS point (
        series text, at timestamptz, labels jsonb, count bigint, total float8, peak float8, buckets jsonb
    )
    ON CONFLICT (step, series, at, labels) DO UPDATE SET
"""
_WRITES: Final = {
    how: text(_WRITE + change).bindparams(bindparam("points", type_=JSONB))
    for how, change in (
        (
            "replaced",
            "count = excluded.count, total = excluded.total, peak = excluded.peak, buckets = excluded.buckets",
        ),
        (
            "added",
            "count = metric_point.count + excluded.count, total = metric_point.total + excluded.total, "
            "peak = greatest(metric_point.peak, excluded.peak)",
        ),
    )
}

_FOLD: Final = text(
    """
    WITH fine AS (
        SELECT series, labels, date_trunc('hour', at) AS hour, count, total, peak, buckets FROM metric_point
        WHERE step = 60 AND series = ANY(:series) AND at >= :since AND at < :until
    ), spread AS (
        SELECT series, labels, hour, jsonb_object_agg(bucket, held) AS buckets
        FROM (
            SELECT series, labels, hour, key AS bucket, sum(value::bigint) AS held
            FROM fine, jsonb_each_text(buckets) GROUP BY 1, 2, 3, 4
        ) held GROUP BY 1, 2, 3
    )
    INSERT INTO metric_point (step, series, at, labels, count, total, peak, buckets)
    SELECT 3600, series, hour, labels, sum(count), sum(total), max(peak), coalesce(spread.buckets, '{}')
    FROM fine LEFT JOIN spread USING (series, labels, hour)
    GROUP BY series, hour, labels, spread.buckets
    ON CONFLICT (step, series, at, labels) DO UPDATE SET
        count = excluded.count, total = excluded.total, peak = excluded.peak, buckets = excluded.buckets
    """
)


def replace(session: Session, points: Sequence[Point]) -> None:
    """Write points by minute in place of what stands there."""
    _write(session, points, "replaced")


def add(session: Session, points: Sequence[Point]) -> None:
    """Add points by minute to what stands there. They may be added once."""
    _write(session, points, "added")


def fold(session: Session, series: Sequence[str], since: datetime, until: datetime) -> None:
    """Write the hours from the one of `since` up to `until` anew, from their minutes."""
    hour = since.replace(minute=0, second=0, microsecond=0)
    session.execute(_FOLD, {"series": list(series), "since": hour, "until": until})


def prune(session: Session, series: Sequence[str], now: datetime) -> None:
    """Delete the minutes and the hours that are past their time."""
    for step, kept in ((MINUTE, MINUTES_KEPT), (HOUR, HOURS_KEPT)):
        old = (MetricPoint.step == step, MetricPoint.series.in_(series), MetricPoint.at < now - kept)
        session.execute(delete(MetricPoint).where(*old))


def _write(session: Session, points: Sequence[Point], how: str) -> None:
    if points:
        rows = [{**asdict(point), "at": point.at.isoformat()} for point in points]
        session.execute(_WRITES[how], {"points": rows})
