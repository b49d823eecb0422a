"""What jobs tell of a stretch of time: points that can be counted anew at any time, with the same result.

Jobs that ended are found tenant by tenant through `ix_job_tenant_finished`, those that were submitted by their
identifiers, which sort by time: no index of its own slows down a submit or a finish.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from math import log
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from penstock.ids import first_id
from penstock.jobs.states import JobClass, JobState
from penstock.rollups.histogram import GROWTH, SMALLEST

_SKEW: Final = timedelta(minutes=2)  # that an identifier may be off the database's clock

_SUBMITTED: Final = text(
    """
    SELECT date_trunc('minute', created_at) AS at, model_name, model_version, job_class, count(*) AS jobs
    FROM job
    WHERE id >= :first_id AND id < :last_id AND created_at >= :since AND created_at < :until
    GROUP BY 1, 2, 3, 4
    """
)

_ENDED: Final = """
    FROM tenant CROSS JOIN LATERAL (
        SELECT * FROM job
        WHERE job.tenant_id = tenant.id AND job.finished_at >= :since AND job.finished_at < :until
    ) ended
"""

_FINISHED: Final = text(
    f"""
    SELECT date_trunc('minute', finished_at) AS at, model_name, model_version, job_class, state,
        error ->> 'code' AS code, count(*) AS jobs, coalesce(sum(prompt_tokens), 0) AS input,
        coalesce(sum(cached_tokens), 0) AS cached, sum(output_tokens) AS output
    {_ENDED}
    GROUP BY 1, 2, 3, 4, 5, 6
    """
)

_SPREADS: Final = text(
    f"""
    SELECT series, date_trunc('minute', finished_at) AS at, model_name, model_version, job_class,
        floor(ln(greatest(seconds, :smallest)) / :log_growth)::int AS bucket,
        count(*) AS held, sum(seconds) AS total, max(seconds) AS peak
    {_ENDED}
    CROSS JOIN LATERAL (VALUES
        ('wait.seconds', extract(epoch FROM started_at - ended.created_at)::float),
        ('ttft.seconds', extract(epoch FROM first_token_at - ended.created_at)::float),
        ('latency.seconds', CASE WHEN state = 'succeeded' AND first_token_at IS NOT NULL
            THEN extract(epoch FROM finished_at - ended.created_at)::float END)
    ) told (series, seconds)
    WHERE seconds IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5, 6
    """  # noqa: S608  # a constant
)


@dataclass(slots=True)
class Point:
    """What a series with these labels came to at one time; as `MetricPoint`."""

    series: str
    at: datetime
    labels: dict[str, str]
    count: int = 0
    total: float = 0.0
    peak: float = 0.0
    buckets: dict[str, int] = field(default_factory=dict)


def counted(session: Session, since: datetime, until: datetime) -> list[Point]:
    """All points by minute that the jobs of that time make."""
    span = {"since": since, "until": until}
    ids = {"first_id": first_id("job", since - _SKEW), "last_id": first_id("job", until + _SKEW)}
    submitted = session.execute(_SUBMITTED, span | ids).all()
    finished = session.execute(_FINISHED, span).all()
    spreads = session.execute(_SPREADS, span | {"smallest": SMALLEST, "log_growth": log(GROWTH)}).all()
    return merged(chain(_submissions(submitted), _endings(finished), _distributions(spreads)))


def merged(points: Iterable[Point]) -> list[Point]:
    """The points with those of one series, time and set of labels added up."""
    found: dict[tuple[Any, ...], Point] = {}
    for point in points:
        known = found.setdefault((point.series, point.at, *sorted(point.labels.items())), point)
        if known is not point:
            _add(known, point)
    return list(found.values())


def labels_of(row: Row[Any]) -> dict[str, str]:
    """Model, version and class of the jobs in a row."""
    return {
        "model": row.model_name,
        "version": row.model_version,
        "class": JobClass(row.job_class).name.lower(),
    }


def _add(known: Point, point: Point) -> None:
    known.count += point.count
    known.total += point.total
    known.peak = max(known.peak, point.peak)
    for number, count in point.buckets.items():
        known.buckets[number] = known.buckets.get(number, 0) + count


def _submissions(rows: Sequence[Row[Any]]) -> Iterator[Point]:
    for row in rows:
        yield _sum("jobs.submitted", row, row.jobs)


def _endings(rows: Sequence[Row[Any]]) -> Iterator[Point]:
    for row in rows:
        yield _sum("jobs.finished", row, row.jobs, state=row.state)
        yield _sum("tokens.input", row, row.input)
        yield _sum("tokens.cached", row, row.cached)
        yield _sum("tokens.output", row, row.output)
        if row.state == JobState.FAILED:
            yield _sum("jobs.failed", row, row.jobs, code=row.code or "unknown")


def _distributions(rows: Sequence[Row[Any]]) -> Iterator[Point]:
    for row in rows:
        buckets = {str(row.bucket): row.held}
        yield Point(row.series, row.at, labels_of(row), row.held, row.total, row.peak, buckets)


def _sum(series: str, row: Row[Any], amount: int, **labels: str) -> Point:
    return Point(series, row.at, labels_of(row) | labels, row.jobs, float(amount), float(amount))
