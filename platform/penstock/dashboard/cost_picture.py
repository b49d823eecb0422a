"""What a policy costs, as a page shows it: a sentence, and by candidate when its rollout ends, on an axis of jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from typing import Final

from penstock.dashboard.guardrail_words import percent
from penstock.rollouts.costs import CHAMPION_FAILS, MOST_JOBS, Cost, Outcome
from penstock.rollouts.verdicts import Verdict

_LEAST: Final = 50
_TICKS: Final = ((100, "100"), (1_000, "1,000"), (10_000, "10,000"))
_ENDS: Final[Mapping[Verdict, str]] = {
    Verdict.PROMOTE: "pass",
    Verdict.ROLLBACK: "are taken back",
    Verdict.HOLD: "are undecided",
}


@dataclass(frozen=True, slots=True)
class CostRow:
    """One kind of candidate: how most of its rollouts end, when, and how many of the jobs it served by then.

    `start`, `middle` and `end` are the jobs within which a tenth, half and nine tenths end, from 0 to 100.
    """

    words: str
    verdict: str
    ends: str
    jobs: str
    served: str
    start: float
    middle: float
    end: float


@dataclass(frozen=True, slots=True)
class CostPage:
    """The whole; `ticks` are the axis, each with its place from 0 to 100. `done` of 1 is all."""

    sentence: str
    rows: list[CostRow]
    ticks: list[tuple[float, str]]
    done: float


def cost_page(cost: Cost) -> CostPage:
    """What is known of the cost, for a page."""
    known = [outcome for outcome in cost.outcomes if outcome.ends]
    return CostPage(
        _sentence(known), [_row(each) for each in known], [(_x(at), text) for at, text in _TICKS], cost.done
    )


def _row(outcome: Outcome) -> CostRow:
    verdict, decided = outcome.usual, outcome.usual is not Verdict.HOLD
    low, half, high = (outcome.jobs(level) for level in (0.1, 0.5, 0.9))
    return CostRow(
        f"{outcome.kind.words[:1].upper()}{outcome.kind.words[1:]}",
        verdict.value,
        f"{percent(outcome.rate(verdict))} {_ENDS[verdict]}",
        f"{half:,}" if decided else "–",
        f"{outcome.served(0.5):,}" if decided else "–",
        _x(low),
        _x(half),
        _x(high),
    )


def _sentence(known: list[Outcome]) -> str:
    """The two that matter most: what harm costs, and what harmlessness takes."""
    by_name = {outcome.kind.name: outcome for outcome in known}
    told = [_told(by_name[name]) for name in ("errors10", "harmless") if name in by_name]
    joined = "; ".join(told)
    return (
        f"{joined[:1].upper()}{joined[1:]}. The champion is taken to fail {percent(CHAMPION_FAILS)} of its jobs."
        if told
        else ""
    )


def _told(outcome: Outcome) -> str:
    verdict = outcome.usual
    who = f"a version that {outcome.kind.words}"
    if verdict is Verdict.HOLD:
        return f"{who} is undecided after {MOST_JOBS:,} jobs"
    end = "is taken back" if verdict is Verdict.ROLLBACK else "passes"
    return f"{who} {end} after some {outcome.jobs(0.5):,} jobs, of which it served {outcome.served(0.5):,}"


def _x(jobs: float) -> float:
    """Its place on the axis, which is logarithmic."""
    return 100 * log10(max(jobs, _LEAST) / _LEAST) / log10(MOST_JOBS / _LEAST)
