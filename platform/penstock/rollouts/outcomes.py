"""From jobs that have ended to a stage's evidence: each unit once, in the order in which they ended. Pure.

Turns are arbitrary: whichever way the same ends, in the same order, are cut into turns, the evidence is the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from penstock.rollouts.assignment import Arm
from penstock.rollouts.evidence import Evidence, paired
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.worth import with_trades

Counts = Counter[tuple[float, Arm]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an assigned job. `key` is that of its user or tenant, where those are the units."""

    job_id: str
    arm: Arm
    share: float
    step: int
    key: str | None
    completed: bool
    """It succeeded, or failed: a job that was cancelled or came too late says nothing about failures."""
    failed: bool
    """By the version's doing, as far as anybody can tell."""
    stratum: str | None = None
    seconds: float | None = None
    """From its start to its end; none where that says nothing: it never began, began anew, or met a cold model."""

    def slow(self, thresholds: Mapping[str, float]) -> bool | None:
        """Whether it was slower than its stratum's threshold; none where nobody can tell.

        Of a job that was broken off it is known once it had taken too long by then.
        """
        threshold = thresholds.get(self.stratum or "")
        if threshold is None or self.seconds is None:
            return None
        beyond = self.seconds > threshold
        return beyond if beyond or self.completed else None


class Marks(Protocol):
    """What was counted of one unit so far."""

    first_job: str
    candidate_step: int | None
    failed: bool
    slow: bool


@dataclass(slots=True)
class Fresh:
    """A unit of which nothing was counted: such as a job that is one by itself."""

    first_job: str
    candidate_step: int | None = None
    failed: bool = False
    slow: bool = False


def fold(
    before: Evidence,
    outcomes: Iterable[Outcome],
    units: Mapping[str, Marks],
    thresholds: Mapping[str, float],
    step: int,
) -> Evidence:
    """With these ends too. `units` are those of the outcomes' keys, and are marked; `step` is the one under way."""
    turn = _Turn(thresholds, step)
    for outcome in outcomes:
        turn.take(outcome, Fresh(outcome.job_id) if outcome.key is None else units[outcome.key])
    return turn.onto(before)


class _Turn:
    """What one turn finds."""

    def __init__(self, thresholds: Mapping[str, float], step: int) -> None:
        self._thresholds, self._step = thresholds, step
        self._units_of_step = 0
        self._failures: Counts = Counter()
        self._slow: dict[str, Counts] = {}
        self._errors: list[tuple[Arm, float]] = []
        self._delays: list[tuple[Arm, float]] = []

    def take(self, outcome: Outcome, unit: Marks) -> None:
        slow = outcome.slow(self._thresholds)
        if outcome.failed and not unit.failed:
            unit.failed = True
            self._failures[outcome.share, outcome.arm] += 1
        if slow and not unit.slow:
            unit.slow = True
            self._slow.setdefault(outcome.stratum or "", Counter())[outcome.share, outcome.arm] += 1
        if outcome.job_id == unit.first_job:
            if outcome.completed:
                self._errors.append((outcome.arm, float(outcome.failed)))
            if slow is not None:
                self._delays.append((outcome.arm, float(slow)))
        self._count_unit(outcome, unit)

    def _count_unit(self, outcome: Outcome, unit: Marks) -> None:
        served = outcome.completed and outcome.arm is Arm.CANDIDATE and outcome.step == self._step
        if served and unit.candidate_step != self._step:
            unit.candidate_step = self._step
            self._units_of_step += 1

    def onto(self, before: Evidence) -> Evidence:
        slow = dict(before.slow)
        for stratum, counts in self._slow.items():
            slow[stratum] = added(slow.get(stratum, Tally()), counts)
        grown = replace(
            before,
            step_units=before.step_units + self._units_of_step,
            failures=added(before.failures, self._failures),
            slow=slow,
        )
        return with_pairs(with_pairs(grown, "errors", self._errors), "slow", self._delays)


def added(tally: Tally, counts: Counts) -> Tally:
    """With so many more, by share and arm."""
    for (share, arm), count in sorted(counts.items()):
        tally = tally.plus(share, **{arm.value: count})
    return tally


def with_feedback(before: Evidence, said: Sequence[tuple[Arm, float, float]]) -> Evidence:
    """With what units said that came, in their order: their arm, the score, and the seconds that the job took."""
    scores = [(arm, -score) for arm, score, _ in said]
    seconds = paired(before.waiting.get("seconds", ()), [(arm, -time) for arm, _, time in said])
    quality = paired(before.waiting.get("feedback", ()), scores)
    trades = with_trades(before.trades, quality.differences, seconds.differences)
    kept = replace(before, trades=trades, waiting=before.waiting | {"seconds": seconds.waiting})
    return with_pairs(kept, "feedback", scores) if said else before


def with_pairs(before: Evidence, name: str, values: Sequence[tuple[Arm, float]]) -> Evidence:
    """With the values of units that came, in their order, paired off."""
    if not values:
        return before
    found = paired(before.waiting.get(name, ()), values)
    sample = before.pairs.get(name, Sample()).plus(*found.differences)
    return replace(before, pairs=before.pairs | {name: sample}, waiting=before.waiting | {name: found.waiting})
