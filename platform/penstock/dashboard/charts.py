"""The charts of the dashboard, each made of a few series, and the answers that `js/charts.js` draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from penstock.rollups.asking import ask
from penstock.rollups.reading import Chart, Line, read
from penstock.rollups.series import Kind

RANGES: Final = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
_LINES_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Spec:
    """A chart: its series, by which label their lines are told apart, and which statistics of a spread it shows.

    With `per` seconds, counts are told as so many in that time.
    """

    title: str
    says: str
    series: tuple[str, ...]
    unit: str
    form: str = "line"
    by: str | None = None
    statistics: tuple[str, ...] = ("p50", "p95", "p99")
    per: int | None = None
    names: dict[str, str] = field(default_factory=dict)
    colours: dict[str, int] = field(default_factory=dict)
    palette: tuple[int, ...] = (1, 2, 3, 5, 6, 4)


CHARTS: Final = {
    "throughput": Spec(
        "Tokens", "Of jobs that ended, averaged over each step",
        ("tokens.output", "tokens.input"), "tokens/s", "area", per=1,
        names={"tokens.output": "Output", "tokens.input": "Input"}, colours={"tokens.output": 1, "tokens.input": 5},
    ),
    "jobs": Spec(
        "Jobs finished", "By how they ended", ("jobs.finished",), "jobs/min", "bars", "state", per=60,
        colours={"succeeded": 1, "failed": 4, "cancelled": 3, "expired": 2},
    ),
    "ttft": Spec(
        "Time to first token", "From submission", ("ttft.seconds",), "s", colours={"p50": 1, "p95": 2, "p99": 4}
    ),
    "latency": Spec(
        "Time to the end", "From submission, of jobs that succeeded", ("latency.seconds",), "s",
        colours={"p50": 1, "p95": 2, "p99": 4},
    ),
    "queue": Spec("Queue", "Jobs that wait, by class", ("queue.depth",), "jobs", "area", "class"),
    "oldest": Spec("Oldest in the queue", "The longest wait, by class", ("queue.oldest_seconds",), "s", by="class"),
    "engines": Spec(
        "Engines", "KV pool, batch and prefix cache", ("kv.use", "batch.occupancy", "cache.hit_rate"), "%",
        names={"kv.use": "KV in use", "batch.occupancy": "Batch", "cache.hit_rate": "Prefix hits"},
    ),
    "errors": Spec(
        "Errors", "Jobs that failed, by code", ("jobs.failed",), "jobs/min", "bars", "code", per=60,
        palette=(4, 2, 3, 5, 6, 1),
    ),
}  # fmt: skip


def chart_document(session: Session, spec: Spec, now: datetime, length: timedelta) -> dict[str, Any]:
    """What the chart's figure draws, for the time of that length that ended with the last whole minute."""
    until = now.replace(second=0, microsecond=0)
    chart = read(session, ask(spec.series, until - length, until, by=spec.by))
    lines = _largest([line for line in chart.lines if _shown(spec, line)], spec)
    return {
        "at": [int(moment.timestamp()) for moment in chart.moments],
        "step": chart.step,
        "unit": spec.unit,
        "form": spec.form,
        "lines": [_line(spec, chart, line, number, until) for number, line in enumerate(lines)],
    }


def _shown(spec: Spec, line: Line) -> bool:
    if line.series.kind is Kind.SPREAD:
        return line.statistic in spec.statistics
    return True


def _largest(lines: Sequence[Line], spec: Spec) -> list[Line]:
    """As many labels as can be told apart: those with the most in them, in a steady order."""
    if spec.by is None or len(lines) <= _LINES_SHOWN:
        return list(lines)
    heaviest = sorted(lines, key=lambda line: -sum(value or 0.0 for value in line.values))[:_LINES_SHOWN]
    return [line for line in lines if line in heaviest]


def _line(spec: Spec, chart: Chart, line: Line, number: int, until: datetime) -> dict[str, Any]:
    name = line.label if spec.by else line.statistic if line.series.kind is Kind.SPREAD else line.series.name
    rated = spec.per if line.series.kind is Kind.COUNT else None
    return {
        "label": spec.names.get(name) or _worded(name) or line.series.says,
        "values": _rates(chart, line, rated, until) if rated else [_rounded(value) for value in line.values],
        "colour": spec.colours.get(name) or spec.palette[number % len(spec.palette)],
    }


def _rates(chart: Chart, line: Line, per: int, until: datetime) -> list[float | None]:
    """Counts as so many in `per` seconds; the last step may have begun a moment ago."""
    lasted = [min(chart.step, (until - moment).total_seconds()) for moment in chart.moments]
    return [
        None if value is None else _rounded(value * per / seconds)
        for value, seconds in zip(line.values, lasted, strict=True)
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _worded(name: str) -> str:
    return name if name.startswith("p") and name[1:].isdigit() else name.replace("_", " ").capitalize()
