"""What the statistics do where the truth is known: how often they alarm without harm, and how soon with it.

Everything is looked at after every job, which is more often than a controller looks. Runs are drawn from a seed, so
figures can be had again to the digit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.rollouts.statistics import (
    CONCENTRATION,
    RATIOS,
    Floats,
    log_threshold,
    mean_factors,
    ratio_factors,
)

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

NEVER: Final = math.inf
_WORST_RATE: Final = 0.5


@dataclass(frozen=True, slots=True)
class World:
    """How jobs come, and fail.

    `tenants` of 0: all jobs are alike. Else tenants' own error rates are lognormal with `spread`, with `error_rate`
    in the mean over jobs, and their traffic follows Zipf's law. `swing` is by which factor the rate of all rises and
    falls over the run. The shares of `shares` take equally long. `once` counts each tenant with its first failure.
    """

    error_rate: float = 0.01
    ratio: float = 1.0
    jobs: int = 20_000
    shares: tuple[float, ...] = (0.1,)
    tenants: int = 0
    spread: float = 1.5
    swing: float = 1.0
    sticky: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """One run: for each job whether the candidate had it, at what share, whether it failed, and for which tenant."""

    candidate: Bools
    share: Floats
    failed: Bools
    tenant: Integers


@dataclass(frozen=True, slots=True)
class Alarms:
    """When each run raised its first alarm: jobs until then, and the candidate's among them; infinite for never."""

    jobs: tuple[float, ...]
    exposed: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Part of the runs that alarmed."""
        return sum(job < NEVER for job in self.jobs) / len(self.jobs)

    @property
    def bound(self) -> float:
        """What the true rate stays under with 95% confidence, by Hoeffding's and Chernoff's bound for counts."""
        return _upper_bound(self.rate, len(self.jobs))

    def quantile(self, level: float) -> tuple[float, float]:
        """Jobs, and the candidate's among them, within which that part of the runs alarmed."""
        return quantile(self.jobs, level), quantile(self.exposed, level)


def quantile(values: Sequence[float], level: float) -> float:
    """The least value that so many of them do not exceed."""
    return sorted(values)[max(math.ceil(level * len(values)) - 1, 0)]


def false_alarms_and_power(world: World, *, alpha: float, runs: int, seed: int) -> Alarms:
    """The test of failures (`log_ratio_evidence`), looked at after every job of so many runs."""
    found = [_first_alarm(stream, world.once, alpha) for stream in streams(world, runs, seed)]
    return Alarms(tuple(jobs for jobs, _ in found), tuple(exposed for _, exposed in found))


def streams(world: World, runs: int, seed: int) -> Iterator[Stream]:
    """So many runs."""
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        yield _stream(world, rng)


def ratio_path(candidate: Bools, share: Floats, tolerated: float = 1.0, start: Floats | float = 0.0) -> Floats:
    """[failures, ratios] Log capitals after each failure, given whose it was and at what share."""
    logs = np.zeros((len(candidate), len(RATIOS)))
    for each in np.unique(share):
        ours, theirs = ratio_factors(float(each), tolerated)
        logs[share == each] = np.where(candidate[share == each, None], ours, theirs)
    return np.asarray(start + np.cumsum(logs, axis=0))


def mean_path(values: Floats, bound: float, *, lower: float = -1.0, above: bool) -> Floats:
    """[values, fractions] Log capitals after each value."""
    return np.cumsum(mean_factors(values, bound, lower=lower, above=above), axis=0)


def log_mean(paths: Floats) -> Floats:
    """[units] Log of the bettors' mean capital, of [units, bettors]."""
    return np.asarray(np.logaddexp.reduce(paths, axis=1)) - math.log(paths.shape[1])


def sample_ratio_path(candidate: Bools, share: float) -> Floats:
    """[units] Log capital of `log_multinomial_evidence` after each unit: predicted against planned probabilities."""
    seen = np.arange(len(candidate))
    ours: Integers = np.cumsum(candidate) - candidate
    had = np.where(candidate, ours, seen - ours)
    planned = np.where(candidate, share, 1 - share)
    predicted = (CONCENTRATION * planned + had) / (CONCENTRATION + seen)
    return np.cumsum(np.log(predicted / planned))


def first_at(path: Floats, threshold: float) -> int | None:
    """The index of the first that reaches it."""
    reached = path >= threshold
    return int(np.argmax(reached)) if reached.any() else None


def _first_alarm(stream: Stream, once: bool, alpha: float) -> tuple[float, float]:
    failures = np.flatnonzero(stream.failed)
    if once:
        failures = failures[first_of_each(stream.tenant[failures])]
    path = log_mean(ratio_path(stream.candidate[failures], stream.share[failures]))
    found = first_at(path, log_threshold(alpha))
    if found is None:
        return NEVER, NEVER
    jobs = int(failures[found]) + 1
    return float(jobs), float(np.count_nonzero(stream.candidate[:jobs]))


def first_of_each(keys: Integers) -> Integers:
    """Indices, ascending, at which a key appears for the first time."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _stream(world: World, rng: np.random.Generator) -> Stream:
    share = np.repeat(world.shares, math.ceil(world.jobs / len(world.shares)))[: world.jobs]
    tenant, rate = _traffic(world, rng)
    rate = rate * world.swing ** np.sin(np.linspace(0, 2 * math.pi, world.jobs))
    luck = rng.random(world.tenants)[tenant] if world.sticky else rng.random(world.jobs)
    candidate = luck < share
    failed = rng.random(world.jobs) < np.minimum(np.where(candidate, rate * world.ratio, rate), 1.0)
    return Stream(candidate, share, failed, tenant)


def _traffic(world: World, rng: np.random.Generator) -> tuple[Integers, Floats]:
    """Each job's tenant, and its own error rate."""
    if not world.tenants:
        return np.arange(world.jobs), np.full(world.jobs, world.error_rate)
    weights = 1 / np.arange(1, world.tenants + 1)
    weights /= weights.sum()
    rates = rng.lognormal(0.0, world.spread, world.tenants)
    rates = np.minimum(rates * world.error_rate / (weights @ rates), _WORST_RATE)
    tenant = rng.choice(world.tenants, world.jobs, p=weights)
    return tenant, rates[tenant]


def _upper_bound(rate: float, runs: int, confidence: float = 0.95) -> float:
    """The largest rate whose chance of showing so few alarms is not under `1 - confidence`, by bisection."""
    low, high = rate, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if runs * _divergence(rate, middle) > -math.log(1 - confidence):
            high = middle
        else:
            low = middle
    return high


def _divergence(seen: float, true: float) -> float:
    """KL divergence between two coins."""
    terms = ((seen, true), (1 - seen, 1 - true))
    return sum(part * math.log(part / whole) if whole else math.inf for part, whole in terms if part)
