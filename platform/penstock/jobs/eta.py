"""When a waiting job's answer will be there: an interval, from how long jobs of its version took lately.

The queue is played out many times. Each time the seconds that jobs take are drawn from those seen, reweighted at random
(the Bayesian bootstrap: Rubin, "The Bayesian Bootstrap", 1981), so that few of them mean much doubt; two that nobody
saw, one on either side of their median, stand for what is not known: a factor of e away where one job was seen, and as
far as jobs differ where many were. Slots that are busy come free when jobs that have run for so long do. The interval
lies between quantiles of the ends.

It knows nothing of jobs that are yet to come and go first, nor of how long this one's answer is to be.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate
from statistics import median
from typing import Final

COVERAGE: Final = 0.8
MOST_SEEN: Final = 64
_TAIL: Final = 0.07
"""Beyond either end in the rounds: less than half of what `COVERAGE` leaves, because where a few jobs take very long,
some dozens of them tell too little of the longest. Chosen by simulation (the lab notes have the table)."""
_MOST_ROUNDS: Final = 200
_LEAST_ROUNDS: Final = 40
_INSTANT: Final = 1e-3
_EFFORT: Final = 20_000  # draws in all: some 10 ms


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a deployment's speed, in seconds.

    `taken` are from claim to end, of jobs that ended lately; `running` are since the claim, of those that run now in
    `slots` places.
    """

    taken: Sequence[float]
    running: Sequence[float]
    slots: int


@dataclass(frozen=True, slots=True)
class Interval:
    """Seconds from now, between which the end lies with a chance of `COVERAGE`. `seen` is of how many jobs we know."""

    earliest: float
    latest: float
    seen: int


def estimate(evidence: Evidence, ahead: int, *, seed: str) -> Interval:
    """The interval for a job that `ahead` others precede; the same for the same evidence and `seed`.

    Needs at least one slot and one job that ended.
    """
    chance, seconds = random.Random(seed), _with_unseen(evidence.taken)
    rounds = min(max(_EFFORT // (ahead + evidence.slots + 1), _LEAST_ROUNDS), _MOST_ROUNDS)
    ends = sorted(_play(evidence, seconds, ahead, chance) for _ in range(rounds))
    low, high = math.floor(_TAIL * (rounds + 1)), math.ceil((1 - _TAIL) * (rounds + 1))
    return Interval(ends[low - 1], ends[high - 1], len(evidence.taken))


def _with_unseen(taken: Sequence[float]) -> list[float]:
    """What jobs took, sorted, and two more that stand for what was not seen."""
    logs = [math.log(max(seconds, _INSTANT)) for seconds in taken]
    middle = median(logs)
    apart = math.sqrt((1 + sum((each - middle) ** 2 for each in logs)) / max(len(logs) - 1, 1))
    return sorted(math.exp(each) for each in (*logs, middle - apart, middle + apart))


def _play(evidence: Evidence, seconds: Sequence[float], ahead: int, chance: random.Random) -> float:
    """Seconds until the job's end, once: who waits takes the slot that comes free first."""
    weights = list(accumulate(chance.expovariate(1) for _ in seconds))
    busy = sorted(evidence.running)[: evidence.slots]
    free_at = [_rest(ran, seconds, weights, chance) for ran in busy] + [0.0] * (evidence.slots - len(busy))
    heapify(free_at)
    draws = chance.choices(seconds, cum_weights=weights, k=ahead + 1)
    for taken in draws[:-1]:
        heapreplace(free_at, free_at[0] + taken)
    return free_at[0] + draws[-1]


def _rest(ran: float, seconds: Sequence[float], weights: Sequence[float], chance: random.Random) -> float:
    """How much longer a job takes that has run for so long: as those that took longer than that.

    One that outlasts all that were seen begins anew, for want of anything better.
    """
    below = sum(taken <= ran for taken in seconds)
    if below == len(seconds):
        return chance.choices(seconds, cum_weights=weights)[0]
    passed = weights[below - 1] if below else 0.0
    longer = [weight - passed for weight in weights[below:]]
    return chance.choices(seconds[below:], cum_weights=longer)[0] - ran
