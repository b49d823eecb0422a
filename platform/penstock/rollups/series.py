"""The series that are kept: what each counts, in which unit, and with which labels."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a series' value for a stretch of time is.

    `count`: how many, or how much, there were in it. `level`: how much there was on average. `peak`: the greatest that
    was seen. `spread`: percentiles of its observations. `ratio`: one series' sum divided by another's.
    """

    COUNT = "count"
    LEVEL = "level"
    PEAK = "peak"
    SPREAD = "spread"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Series:
    """One series. `of` are the two series that a ratio divides; only what is kept itself has points."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    says: str
    of: tuple[str, str] | None = None


_JOB: Final = ("model", "version", "class")
_HOSTED: Final = ("model", "version")

SERIES: Final = {
    each.name: each
    for each in (
        Series("jobs.submitted", Kind.COUNT, "jobs", _JOB, "Jobs that were accepted"),
        Series("jobs.finished", Kind.COUNT, "jobs", (*_JOB, "state"), "Jobs that ended, by how"),
        Series("jobs.failed", Kind.COUNT, "jobs", (*_JOB, "code"), "Jobs that failed, by the code of their error"),
        Series("tokens.input", Kind.COUNT, "tokens", _JOB, "Prompt tokens of the jobs that ended"),
        Series("tokens.cached", Kind.COUNT, "tokens", _JOB, "Those of them that were found in the prefix cache"),
        Series("tokens.output", Kind.COUNT, "tokens", _JOB, "Tokens that the jobs which ended had generated"),
        Series("wait.seconds", Kind.SPREAD, "s", _JOB, "From submission to the first run"),
        Series("ttft.seconds", Kind.SPREAD, "s", _JOB, "From submission to the first token"),
        Series("latency.seconds", Kind.SPREAD, "s", _JOB, "From submission to the end, of jobs that succeeded"),
        Series("queue.depth", Kind.LEVEL, "jobs", _JOB, "Jobs that wait"),
        Series("queue.oldest_seconds", Kind.PEAK, "s", _JOB, "The age of the job that has waited longest"),
        Series("jobs.running", Kind.LEVEL, "jobs", _JOB, "Jobs that run"),
        Series("workers.live", Kind.LEVEL, "workers", (), "Workers that were heard of"),
        Series("outbox.waiting", Kind.LEVEL, "messages", (), "Messages that no relay has passed on yet"),
        Series("kv.pages_in_use", Kind.LEVEL, "pages", _HOSTED, "Pages of the KV pools that requests use"),
        Series("kv.pages", Kind.LEVEL, "pages", _HOSTED, "Pages that the KV pools have"),
        Series("batch.running", Kind.LEVEL, "requests", _HOSTED, "Requests in the engines' batches"),
        Series("batch.places", Kind.LEVEL, "requests", _HOSTED, "Requests that the engines' batches have room for"),
        Series(
            "kv.use",
            Kind.RATIO,
            "",
            _HOSTED,
            "The share of the KV pools' pages that requests use",
            ("kv.pages_in_use", "kv.pages"),
        ),
        Series(
            "cache.hit_rate",
            Kind.RATIO,
            "",
            _JOB,
            "The share of prompt tokens that the prefix cache had",
            ("tokens.cached", "tokens.input"),
        ),
        Series(
            "batch.occupancy",
            Kind.RATIO,
            "",
            _HOSTED,
            "How full the engines' batches are",
            ("batch.running", "batch.places"),
        ),
    )
}

SAMPLES: Final = "samples"
"""How often was looked at what has a level: a level's average divides by this."""
