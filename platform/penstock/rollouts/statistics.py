"""Tests that may be looked at after every job, as often as anybody likes, without being wrong more often for it.

Each is an e-process: a gambler's capital that starts at 1 and cannot be expected to grow while the null hypothesis
holds. By Ville's inequality it ever reaches `1 / alpha` with a chance of at most `alpha`. Capitals are logarithms here.

What is kept is counts alone. The order in which units came does not matter, so counts can be stored, added up by the
database, and judged again to the same figure. A unit is a job where jobs are assigned one by one, and a key where
assignment is sticky: then each key counts once, with its first job, or its first failure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATIOS: Final = tuple(float(ratio) for ratio in np.geomspace(1.25, 50, 12))
"""How many times as often the candidate might fail: the bets of `log_ratio_evidence`."""
FRACTIONS: Final = tuple(float(fraction) for fraction in np.geomspace(0.01, 0.95, 12))
"""Which part of the capital `log_mean_evidence` stakes on each unit."""
CONCENTRATION: Final = 1_000.0
"""How near to the planned shares `log_sample_ratio_evidence` looks for others: some 2 percentage points around 50."""
RESOLUTION: Final = 1_000
"""Bounded values are kept in thousandths."""
_BISECTIONS: Final = 30


@dataclass(frozen=True, slots=True)
class Split:
    """What was counted while the candidate was given `share` of the units: its own, and the champion's."""

    share: float
    candidate: int = 0
    champion: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it must lie between 0 and 1, where both arms have units")
        if self.candidate < 0 or self.champion < 0:
            raise ValueError(f"counts are {self.candidate} and {self.champion}; they must not be negative")


@dataclass(frozen=True, slots=True)
class Tally:
    """Units, or failures, of both arms, by the share that held when they were assigned."""

    splits: tuple[Split, ...] = ()

    def plus(self, share: float, candidate: int = 0, champion: int = 0) -> "Tally":
        """With so many more."""
        found = {split.share: split for split in self.splits}
        old = found.get(share, Split(share))
        found[share] = replace(old, candidate=old.candidate + candidate, champion=old.champion + champion)
        return Tally(tuple(found[share] for share in sorted(found)))

    def __add__(self, other: "Tally") -> "Tally":
        total = self
        for split in other.splits:
            total = total.plus(split.share, split.candidate, split.champion)
        return total

    @property
    def candidate(self) -> int:
        return sum(split.candidate for split in self.splits)

    @property
    def champion(self) -> int:
        return sum(split.champion for split in self.splits)

    @property
    def total(self) -> int:
        return self.candidate + self.champion


@dataclass(frozen=True, slots=True)
class Sample:
    """Values between `lower` and 1: `counts` holds (thousandths, how many), ascending."""

    counts: tuple[tuple[int, int], ...] = ()
    lower: float = -1.0

    def __post_init__(self) -> None:
        if self.lower not in (-1.0, 0.0):
            raise ValueError(f"lower is {self.lower}; values lie between -1 and 1, or between 0 and 1")

    def plus(self, *values: float) -> "Sample":
        """With these values too. Raises `ValueError` for one out of bounds: it would void every guarantee."""
        found = dict(self.counts)
        for value in values:
            if not self.lower <= value <= 1:
                raise ValueError(f"a value is {value}; it must lie between {self.lower:g} and 1")
            found[round(value * RESOLUTION)] = found.get(round(value * RESOLUTION), 0) + 1
        return replace(self, counts=tuple(sorted(found.items())))

    @property
    def size(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def mean(self) -> float:
        return sum(value * count for value, count in self.counts) / RESOLUTION / self.size if self.size else math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a mean lies, at every look at once."""

    low: float
    high: float


def log_threshold(alpha: float, tests: int = 1) -> float:
    """What a log capital must reach. One of `tests` that may each alarm bears `alpha / tests` (Bonferroni)."""
    return math.log(tests / alpha)


def log_ratio_evidence(tally: Tally, *, tolerated: float = 1.0, ratios: Sequence[float] = RATIOS) -> float:
    """Log capital against "the candidate fails at most `tolerated` times as often as the champion".

    With no harm each failure is the candidate's with probability `share`, whatever the rate of failures, which may
    drift, and whatever shares were before; so shares may change from job to job. The mean, over `ratios`, of the
    likelihood ratios of Wald's sequential test (1945), a mixture as in Robbins 1970, "Statistical methods related to
    the law of the iterated logarithm". Assignment must not depend on how often a unit fails by itself: see the
    module's words on units.
    """
    logs = np.zeros(len(ratios))
    for split in tally.splits:
        candidate, champion = ratio_factors(split.share, tolerated, ratios)
        logs += split.candidate * candidate + split.champion * champion
    return _log_mean(logs)


def ratio_factors(share: float, tolerated: float = 1.0, ratios: Sequence[float] = RATIOS) -> tuple[Floats, Floats]:
    """What a failure of the candidate, and one of the champion, adds to the log capital of each ratio."""
    null = _share_of_failures(share, np.array([tolerated]))
    wrong = _share_of_failures(share, tolerated * np.array(ratios))
    return np.log(wrong / null), np.log((1 - wrong) / (1 - null))


def log_stratified_evidence(strata: Mapping[str, Tally], *, tolerated: float = 1.0) -> float:
    """The same for events that are counted by stratum, such as "slower than the champion's 95th percentile here".

    Half of the capital is staked on all strata together, for harm that is everywhere, the other half in equal parts on
    each alone, for harm that one of them has. Every part is an e-process of the same sequence of events, and a mean
    of such is one too, however they depend on each other. (Their product would be valid as well, but strata without
    harm lose their capital, and it would be lost to all.) The strata must be known beforehand, those without events
    among them; and which one a unit is in must not depend on its arm.
    """
    if not strata:
        return 0.0
    together = log_ratio_evidence(sum(strata.values(), Tally()), tolerated=tolerated)
    alone = _log_mean(np.array([log_ratio_evidence(tally, tolerated=tolerated) for tally in strata.values()]))
    return float(np.logaddexp(together, alone) - math.log(2))


def log_mean_evidence(sample: Sample, bound: float, *, above: bool) -> float:
    """Log capital against "the mean is at most `bound`"; with `above` false, against "it is at least that".

    The grid Kelly bettor for means of bounded values: each fraction of `FRACTIONS` is staked on every value, and the
    capitals are averaged (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting";
    fixed stakes need no memory of the order). Falls, or rises, with `bound`, so that `mean_interval` is an interval.
    """
    return _log_mean(mean_capitals(sample, bound, above=above))


def mean_capitals(sample: Sample, bound: float, *, above: bool) -> Floats:
    """Log capital of each fraction of `FRACTIONS`."""
    values = np.array([value / RESOLUTION for value, _ in sample.counts], dtype=float)
    counts = np.array([count for _, count in sample.counts], dtype=float)
    factors = mean_factors(values, bound, lower=sample.lower, above=above)
    return np.asarray(counts @ factors)


def mean_factors(values: Floats, bound: float, *, lower: float = -1.0, above: bool) -> Floats:
    """[values, fractions] What each value adds to the log capital of each fraction."""
    if not lower < bound < 1:
        raise ValueError(f"bound is {bound}; it must lie between {lower:g} and 1, where values lie")
    gain = (values - lower) / (bound - lower) if above else (1 - values) / (1 - bound)
    return np.asarray(np.log1p(np.outer(gain - 1, FRACTIONS)), dtype=np.float64)


def mean_interval(sample: Sample, *, alpha_low: float, alpha_high: float) -> Interval:
    """A confidence sequence: the mean is below `low` with a chance of `alpha_low`, above `high` of `alpha_high`,
    at whichever looks. Holds every bound that neither side's capital has ruled out."""
    low = _last_ruled_out(sample, alpha_low, above=True)
    high = _last_ruled_out(sample, alpha_high, above=False)
    return Interval(low, high)


def log_sample_ratio_evidence(tally: Tally) -> float:
    """Log capital against "units were assigned by the planned shares": the sequential test of sample ratio mismatch.

    For each share that was planned, a mixture of its own.
    """
    return sum(
        log_multinomial_evidence((split.candidate, split.champion), (split.share, 1 - split.share))
        for split in tally.splits
    )


def log_multinomial_evidence(
    counts: Sequence[int], expected: Sequence[float], concentration: float = CONCENTRATION
) -> float:
    """Log capital against "each unit is of kind i with probability `expected[i]`".

    The likelihood under a Dirichlet mixture of probabilities around those expected, over that of the expected ones
    (Lindon and Malek 2022, "Anytime-valid inference for multinomial count data").
    """
    log_capital = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, probability in zip(counts, expected, strict=True):
        prior = concentration * probability
        log_capital += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(probability)
    return log_capital


def _share_of_failures(share: float, ratios: Floats) -> Floats:
    """Which part of the failures the candidate has, that fails `ratios` times as often."""
    return share * ratios / (share * ratios + 1 - share)


def _log_mean(logs: Floats) -> float:
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs))


def _last_ruled_out(sample: Sample, alpha: float, *, above: bool) -> float:
    """The bound nearest to the mean that is ruled out, by bisection between the end and the mean."""
    end = sample.lower if above else 1.0
    out, kept = end, sample.mean
    if not sample.size or kept == end:
        return end
    for _ in range(_BISECTIONS):
        bound = (out + kept) / 2
        if log_mean_evidence(sample, bound, above=above) >= log_threshold(alpha):
            out = bound
        else:
            kept = bound
    return out
