"""Quality against cost: what a better answer may cost in seconds of a device, and where that changes a verdict.

A pair's difference is `quality - cost x seconds`, both the champion's less the candidate's, and counts up to 1 either
way: above 0 the candidate is worse for what it takes. Kept are the pairs themselves, so that every cost can be tried.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from penstock.rollouts.statistics import RESOLUTION, Sample

Trades = tuple[tuple[int, int, int], ...]
"""(thousandths of score, milliseconds, how many pairs), ascending; both the champion's less the candidate's."""

_DIGITS: Final = 2
"""Of milliseconds, so that equal pairs are kept as one."""
_SPREAD: Final = np.geomspace(1e-3, 1e3, 25)
_BISECTIONS: Final = 20


def with_trades(before: Trades, quality: Iterable[float], seconds: Iterable[float]) -> Trades:
    """With these pairs too."""
    counts = Counter({(score, time): count for score, time, count in before})
    counts.update(
        (round(score * RESOLUTION), _rounded(time * 1000)) for score, time in zip(quality, seconds, strict=True)
    )
    return tuple((score, time, counts[score, time]) for score, time in sorted(counts))


def weighed(trades: Trades, cost: float) -> Sample:
    """The differences when a second of a device costs so many points of score."""
    counts: Counter[int] = Counter()
    for score, time, count in trades:
        counts[round(min(max(score - cost * time, -RESOLUTION), RESOLUTION))] += count
    return Sample(tuple(sorted(counts.items())))


def turning_costs(trades: Trades, cost: float, verdict_at: Callable[[float], object]) -> dict[str, float]:
    """The nearest costs `below` and `above` this one at which the verdict is another, as far as there are any.

    Tried are none, and costs that make a pair's usual difference in time worth a thousandth of a point to a thousand.
    """
    spread = sum(abs(time) * count for _, time, count in trades) / 1000
    if not spread:
        return {}
    usual = spread / sum(count for _, _, count in trades)
    tried = [0.0, *(float(each) for each in _SPREAD / usual)]
    own = verdict_at(cost)
    found = {
        "below": next((each for each in reversed(tried) if each < cost and verdict_at(each) != own), None),
        "above": next((each for each in tried if each > cost and verdict_at(each) != own), None),
    }
    return {side: _between(cost, end, verdict_at) for side, end in found.items() if end is not None}


def _between(same: float, other: float, verdict_at: Callable[[float], object]) -> float:
    """Where the verdict changes on the way, by bisection."""
    own = verdict_at(same)
    for _ in range(_BISECTIONS):
        middle = (same + other) / 2
        same, other = (middle, other) if verdict_at(middle) == own else (same, middle)
    return other


def _rounded(milliseconds: float) -> int:
    if not milliseconds:
        return 0
    return int(round(milliseconds, _DIGITS - 1 - math.floor(math.log10(abs(milliseconds)))))
