"""What a run takes, counted from what its engine tells step by step, so that it is known however the run ends.

The definitions are those of the engine's own measures, which come only for requests that the engine itself ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock.jobs.models import Job
from penstock.usage.spent import Spent
from penstock.usage.terms import MILLION, Terms

from penstock_worker.messages import Share, StepReport

NOT_MEASURED = "the worker measures no energy"


class RunMeter:
    """One run's totals so far. Written by the bridge's reader; others read `spent`, which may lack the newest step.

    What an earlier run, which is charged, had computed already counts as recomputed (see `follow`).
    """

    def __init__(self) -> None:
        self._goes_on = False
        self._charged_tokens = 0
        self.cached_tokens: int | None = None
        self.submitted_at: float | None = None
        self.energy_note: str | None = NOT_MEASURED
        self._joules: float | None = None
        self._computed = self._recomputed = 0
        self._recomputed_seconds = 0.0
        self.seconds = 0.0
        self.checkpointed_seconds = 0.0
        self._began_at: float | None = None
        self._first_token_at: float | None = None
        self._steps = [0, 0]  # before the first token was there, and after
        self.last_token_at: float | None = None

    def follow(self, charged: Sequence[Spent], *, position: int) -> None:
        """Earlier runs took what is `charged`; this one goes on after `position` tokens of output.

        All that it computes before its first new token is such a run's work again. Where there was no token yet, that
        is as much of the prompt as one of them had got through.
        """
        self._goes_on = position > 0 and any(each.computed_tokens for each in charged)
        self._charged_tokens = max((_reached(each.cached_tokens, each.computed_tokens) for each in charged), default=0)

    def take(self, share: Share, report: StepReport, joules: float | None, energy_note: str | None) -> None:
        """The run had this share of a step."""
        if self._began_at is None:
            self._began_at = report.began_at
        self._steps[self._first_token_at is not None] += 1
        again = self._again(share)
        self._computed += share.tokens
        self._recomputed += again
        self.seconds += share.seconds
        self._recomputed_seconds += share.seconds * again / share.tokens
        self.energy_note = energy_note
        if joules is not None:
            self._joules = (self._joules or 0.0) + joules

    def note_token(self, at: float) -> None:
        """A step that ended `at` brought the run a token."""
        if self._first_token_at is None:
            self._first_token_at = at
        self.last_token_at = at

    @property
    def charged_seconds(self) -> float:
        """The device's time that its tenant pays for, if it pays for time."""
        return self.seconds - self._recomputed_seconds

    @property
    def spent(self) -> Spent:
        """The totals as they stand."""
        measured = self._joules is not None
        return Spent(
            cached_tokens=self.cached_tokens,
            computed_tokens=self._computed,
            recomputed_tokens=self._recomputed,
            device_seconds=self.seconds,
            recomputed_seconds=self._recomputed_seconds,
            joules=self._joules,
            energy_note=None if measured else self.energy_note,
            queue_seconds=_between(self.submitted_at, self._began_at),
            prefill_seconds=_between(self._began_at, self._first_token_at),
            decode_seconds=_between(self._first_token_at, self.last_token_at),
        )

    @property
    def phases(self) -> list[tuple[str, tuple[float, float], int]]:
        """What it has been through in the engine: name, begin and end by the steady clock, and its steps."""
        marks = (self.submitted_at, self._began_at, self._first_token_at, self.last_token_at)
        found = zip(("queue", "prefill", "decode"), pairwise(marks), (0, *self._steps), strict=True)
        return [(name, (start, end), steps) for name, (start, end), steps in found if start and end]

    def _again(self, share: Share) -> int:
        if self._goes_on and self._first_token_at is None:
            return share.tokens
        left = self._charged_tokens - _reached(self.cached_tokens, self._computed)
        return max(share.recomputed, min(share.tokens, left))


@dataclass(frozen=True, slots=True)
class CostLimit:
    """What a job may cost, as its worker watches it. The bill is exact and never above it; this is when to stop."""

    most: float
    terms: Terms

    @classmethod
    def of(cls, job: Job) -> "CostLimit | None":
        """The job's limit; None where nothing bounds its cost."""
        terms = Terms.from_document(job.terms) if job.terms is not None else None
        return None if terms is None or terms.most is None else cls(float(terms.most), terms)

    def reached(self, prompt_tokens: int, output_tokens: int, meter: "RunMeter") -> bool:
        """Whether a run has cost so much by now. What earlier runs took of the device is left to the bill."""
        cached, terms = min(meter.cached_tokens or 0, prompt_tokens), self.terms
        tokens = (prompt_tokens - cached) * float(terms.input) + cached * float(terms.cached)
        tokens += output_tokens * float(terms.output)
        return tokens / MILLION + meter.charged_seconds * float(terms.device_second) >= self.most


def _reached(cached_tokens: int | None, computed_tokens: int) -> int:
    """How far into the prompt a run got, in tokens."""
    return (cached_tokens or 0) + computed_tokens


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(end - start, 0.0)
