"""Where a job's time went, as spans of a waterfall: waiting, reading the prompt, generating, for every run it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import RunOutcome


class Phase(StrEnum):
    """What a span of time was spent on."""

    WAITING = "waiting"
    STARTING = "starting"
    GENERATING = "generating"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Span:
    """One bar, in seconds from the submission. `open` while it goes on."""

    name: str
    phase: Phase
    start: float
    end: float
    open: bool

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All spans, and the seconds that the axis covers."""

    spans: Sequence[Span]
    seconds: float

    def place(self, span: Span) -> tuple[float, float]:
        """Left edge and width of a bar in thousandths of the axis; every bar can be seen."""
        scale = 1000 / self.seconds if self.seconds > 0 else 0.0
        width = min(max(span.seconds * scale, 4.0), 1000.0)
        return min(span.start * scale, 1000.0 - width), width


def waterfall(job: Job, runs: Sequence[JobRun], now: datetime) -> Waterfall:
    """The spans of a job up to its end, or up to `now` (by the database's clock) while it lives.

    submitted ── waiting ──▶ claim ── starting ──▶ first token ── generating ──▶ end
                     ▲                                                │
                     └──────────────── lost lease, crash ─────────────┘
    """
    end = job.finished_at or now
    spans: list[Span] = []
    free_since = job.created_at
    for number, run in enumerate(runs, start=1):
        spans.append(_span(job, "Queued" if number == 1 else "Queued again", Phase.WAITING, free_since, run.started_at))
        spans.extend(_run_spans(job, run, number if len(runs) > 1 else None, end))
        free_since = run.ended_at or end
    if not runs or (job.finished_at is None and runs[-1].ended_at is not None):
        spans.append(
            _span(job, "Queued again" if runs else "Queued", Phase.WAITING, free_since, end, job.finished_at is None)
        )
    return Waterfall(spans, max((end - job.created_at).total_seconds(), 0.0))


def _run_spans(job: Job, run: JobRun, number: int | None, end: datetime) -> list[Span]:
    suffix = f", run {number}" if number is not None else ""
    run_end = min(run.ended_at or end, end)  # the run's end is noted a moment after the job's
    going_on = run.ended_at is None and job.finished_at is None
    if run.outcome not in (None, RunOutcome.FINISHED):
        return [_span(job, f"Lost{suffix}", Phase.LOST, run.started_at, run_end)]
    first_token = job.first_token_at
    if first_token is None or first_token > run_end:
        return [_span(job, f"Starting{suffix}", Phase.STARTING, run.started_at, run_end, going_on)]
    if first_token < run.started_at:
        return [_span(job, f"Generating{suffix}", Phase.GENERATING, run.started_at, run_end, going_on)]
    return [
        _span(job, f"To first token{suffix}", Phase.STARTING, run.started_at, first_token),
        _span(job, f"Generating{suffix}", Phase.GENERATING, first_token, run_end, going_on),
    ]


def _span(job: Job, name: str, phase: Phase, start: datetime, end: datetime, going_on: bool = False) -> Span:
    offset = (start - job.created_at).total_seconds()
    return Span(name, phase, max(offset, 0.0), max((end - job.created_at).total_seconds(), offset, 0.0), going_on)
