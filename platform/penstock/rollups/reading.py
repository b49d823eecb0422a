"""Reading points for a chart: one row of moments, and a line of values for each series, statistic and label."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Row, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from penstock.rollups.asking import Question, refuse_forgotten
from penstock.rollups.histogram import percentile
from penstock.rollups.models import MetricProgress
from penstock.rollups.series import SAMPLES, Kind, Series

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

_READ: Final = text(
    """
    WITH point AS (
        SELECT series, coalesce(labels ->> :by, '') AS label, count, total, peak, buckets,
            floor(extract(epoch FROM at) / :step)::bigint AS bin
        FROM metric_point
        WHERE step = :kept_step AND series = ANY(:series) AND at >= :since AND at < :until
            AND (labels @> :only OR series = :samples)
    ), spread AS (
        SELECT series, label, bin, jsonb_object_agg(bucket, held) AS buckets
        FROM (
            SELECT series, label, bin, key AS bucket, sum(value::bigint) AS held
            FROM point, jsonb_each_text(buckets) GROUP BY 1, 2, 3, 4
        ) held GROUP BY 1, 2, 3
    )
    SELECT series, label, bin, sum(count) AS count, sum(total) AS total, max(peak) AS peak,
        coalesce(spread.buckets, '{}') AS buckets
    FROM point LEFT JOIN spread USING (series, label, bin)
    GROUP BY series, label, bin, spread.buckets
    """
).bindparams(bindparam("only", type_=JSONB))


@dataclass(frozen=True, slots=True)
class Line:
    """Values, one for each moment; None where nothing is known, or there was nothing to tell of."""

    series: Series
    statistic: str
    label: str
    """The value of the label that lines are told apart by; empty without one."""
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the same moments, each the beginning of `step` seconds."""

    step: int
    moments: Sequence[datetime]
    lines: Sequence[Line]


def read(session: Session, question: Question) -> Chart:
    """The answer. Raises `ValidationFailed` where the minutes that it needs are no longer kept."""
    now = session.scalars(select(func.clock_timestamp())).one()
    refuse_forgotten(question, now)
    begun = session.scalar(select(MetricProgress.since).where(MetricProgress.name == "counts"))
    first, last = int(question.since.timestamp()) // question.step, min(question.until, now).timestamp()
    bins = range(first, max(-int(-last // question.step), first))
    table = _Table(session.execute(_READ, _bindings(question)).all(), bins, begun, question.step)
    moments = [datetime.fromtimestamp(each * question.step, UTC) for each in bins]
    return Chart(question.step, moments, [line for series in question.series for line in table.lines(series)])


def total(line: Line) -> float:
    """All that a line of counts counts."""
    return sum(value for value in line.values if value is not None)


def _bindings(question: Question) -> dict[str, Any]:
    names = {name for series in question.series for name in (series.of or (series.name,))}
    return {
        "kept_step": question.kept_step,
        "step": question.step,
        "series": sorted(names | {SAMPLES}),
        "samples": SAMPLES,
        "since": question.since,
        "until": question.until,
        "by": question.by or "",
        "only": dict(question.only),
    }


class _Table:
    """The points that were found, by series, label and bin: a moment's number, counted in steps since 1970."""

    def __init__(self, rows: Sequence[Row[Any]], bins: range, begun: datetime | None, step: int) -> None:
        self._bins, self._step = bins, step
        self._begun = begun.timestamp() if begun is not None else float("inf")
        self._found: dict[str, dict[str, dict[int, Row[Any]]]] = {}
        for row in rows:
            self._found.setdefault(row.series, {}).setdefault(row.label, {})[row.bin] = row
        self._samples = {number: row.total for number, row in self._of(SAMPLES).get("", {}).items()}

    def lines(self, series: Series) -> Iterator[Line]:
        """A line for each label (one without any), of each statistic that this kind of series has."""
        whole, part = series.of[1] if series.of else series.name, series.of[0] if series.of else ""
        for label, rows in sorted((self._of(whole) or {"": {}}).items()):
            if series.kind is Kind.SPREAD:
                yield from self._spread(series, label, rows)
            elif series.kind is Kind.RATIO:
                yield self._ratio(series, label, self._of(part).get(label, {}), rows)
            else:
                yield Line(
                    series, str(series.kind), label, [self._value(series.kind, rows, each) for each in self._bins]
                )

    def _of(self, name: str) -> dict[str, dict[int, Row[Any]]]:
        return self._found.get(name, {})

    def _value(self, kind: Kind, rows: Mapping[int, Row[Any]], number: int) -> float | None:
        row = rows.get(number)
        if kind is Kind.COUNT:
            counted = (number + 1) * self._step > self._begun
            return float(row.total) if row is not None else 0.0 if counted else None
        if number not in self._samples:
            return None
        if row is None:
            return 0.0
        return float(row.peak) if kind is Kind.PEAK else float(row.total / self._samples[number])

    def _ratio(self, series: Series, label: str, parts: Mapping[int, Row[Any]], wholes: Mapping[int, Row[Any]]) -> Line:
        def share(number: int) -> float | None:
            whole, part = wholes.get(number), parts.get(number)
            return part.total / whole.total if part is not None and whole is not None and whole.total else None

        return Line(series, "ratio", label, [share(each) for each in self._bins])

    def _spread(self, series: Series, label: str, rows: Mapping[int, Row[Any]]) -> Iterator[Line]:
        buckets = {number: {int(key): held for key, held in row.buckets.items()} for number, row in rows.items()}
        for statistic, share in PERCENTILES.items():
            values = [percentile(buckets.get(each, {}), share) for each in self._bins]
            yield Line(series, statistic, label, values)
