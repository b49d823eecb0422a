"""What the route of metrics reads and answers."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from penstock.clock import aware, iso, utc_now
from penstock.rollups.asking import Question, ask
from penstock.rollups.reading import Chart, Line

Moment = Annotated[datetime, AfterValidator(aware)]
_HOUR = timedelta(hours=1)


class MetricsQuery(BaseModel):
    """Which series, of which time, in which steps."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)

    series: str = Field(
        min_length=1, max_length=1000, description="Names, separated by commas: jobs.finished,ttft.seconds"
    )
    since: Moment | None = Field(default=None, alias="from", description="RFC 3339; an hour before `to` without it")
    until: Moment | None = Field(default=None, alias="to", description="RFC 3339; now without it")
    step: int | None = Field(
        default=None, ge=60, le=86400, description="Seconds between two moments: whole minutes; chosen without it"
    )
    by: Literal["model", "version", "class", "state", "code"] | None = Field(
        default=None, description="A label that each value of gets a line of its own"
    )
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Of this model alone")
    version: str | None = Field(default=None, min_length=1, max_length=100, description="Of this version alone")
    job_class: Literal["interactive", "batch", "shadow"] | None = Field(default=None, alias="class")

    def question(self) -> Question:
        """What it asks. Raises `ValidationFailed`."""
        until = self.until or utc_now()
        only = {"model": self.model, "version": self.version, "class": self.job_class}
        return ask(
            self.series.split(","),
            self.since or until - _HOUR,
            until,
            step=self.step,
            by=self.by,
            only={name: value for name, value in only.items() if value is not None},
        )


class MetricLine(BaseModel):
    """One line: a value for each moment of `at`."""

    series: str
    kind: Literal["count", "level", "peak", "spread", "ratio"]
    statistic: Literal["count", "level", "peak", "ratio", "p50", "p90", "p95", "p99"]
    unit: str = Field(description="Of the values; empty for a ratio, which goes from 0 to 1")
    label: str | None = Field(description="The value of the label `by`")
    values: list[float | None] = Field(description="Null where nothing is known, or there was nothing to tell of")


class MetricsDocument(BaseModel):
    """A chart: lines over the same moments."""

    object: Literal["metrics"]
    step: int = Field(description="Seconds from one moment to the next")
    at: list[datetime] = Field(description="The beginning of each step")
    data: list[MetricLine]


def metrics_document(question: Question, chart: Chart) -> dict[str, Any]:
    """As `MetricsDocument`."""
    return {
        "object": "metrics",
        "step": chart.step,
        "at": [iso(moment) for moment in chart.moments],
        "data": [_line(line, question.by is not None) for line in chart.lines],
    }


def _line(line: Line, labelled: bool) -> dict[str, Any]:
    return {
        "series": line.series.name,
        "kind": str(line.series.kind),
        "statistic": line.statistic,
        "unit": line.series.unit,
        "label": line.label if labelled else None,
        "values": [None if value is None else round(value, 4) for value in line.values],
    }
