"""What is told of a model beside another, and how sure it is.

The unit is the sequence: tokens of one answer err together, so errors are computed from sequence to sequence. A mean
over positions is a ratio of sums; its standard error is that of the ratio, by linearisation (Cochran, Sampling
Techniques, chapter 6). A share of sequences has Wilson's interval, which is no point where nothing went wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, inf, sqrt
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Z: Final = 1.959964  # of 95%
MOST_BINS: Final = 48


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its standard error, and the interval that holds it with 95%; a single sequence tells no error."""

    value: float
    error: float | None
    low: float | None
    high: float | None

    def through(self, function: Callable[[float], float]) -> Self:
        """Of a growing function of it; the error by its slope, which is the function itself for `exp`."""
        value = function(self.value)
        if self.error is None or self.low is None or self.high is None:
            return type(self)(value, None, None, None)
        step = 1e-6
        slope = (function(self.value + step) - function(self.value - step)) / (2 * step)
        return type(self)(value, self.error * slope, function(self.low), function(self.high))


@dataclass(frozen=True, slots=True)
class Compared:
    """One sequence under two models, a number for each scored position.

    `divergence` is KL(against || candidate) over the whole vocabulary, in nats; `same_top` 1 where both find the same
    token likeliest; `surprise` and `surprise_against` are minus the natural log probability of the token that is there.
    """

    divergence: Numbers
    same_top: Numbers
    surprise: Numbers
    surprise_against: Numbers


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far next-token distributions lie apart, in nats over all positions."""

    mean: Estimate
    median: float
    p99: float
    max: float
    same_top: Estimate
    perplexity_ratio: Estimate

    @classmethod
    def of(cls, sequences: Sequence[Compared]) -> Self:
        every = np.concatenate([each.divergence for each in sequences])
        median, p99 = np.quantile(every, (0.5, 0.99)).tolist()
        ratio = mean_of([each.surprise - each.surprise_against for each in sequences])
        return cls(
            mean=mean_of([each.divergence for each in sequences], least=0),
            median=median,
            p99=p99,
            max=float(every.max()),
            same_top=mean_of([each.same_top for each in sequences], least=0, most=1),
            perplexity_ratio=ratio.through(exp),
        )


@dataclass(frozen=True, slots=True)
class Flips:
    """Answers that are right by one model and wrong by the other, of `answers`."""

    answers: int
    right_to_wrong: int  # right by `against`, wrong by the candidate
    wrong_to_right: int
    share: Estimate

    @classmethod
    def of(cls, right: Sequence[bool], right_against: Sequence[bool]) -> Self:
        pairs = list(zip(right, right_against, strict=True))
        lost, won = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
        return cls(len(pairs), lost, won, share_of(lost + won, len(pairs)))


@dataclass(frozen=True, slots=True)
class Noise:
    """The model that others are held against beside itself, run again in other batches: what is below it means nothing.

    Exactly 0 where no kernel's sums depend on what else is in a batch.
    """

    divergence: Divergence
    flips: Flips | None


@dataclass(frozen=True, slots=True)
class Position:
    """Divergence at the positions `first` to `last` behind the first that is scored, over all sequences."""

    first: int
    last: int
    count: int
    mean: float
    p99: float


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model by itself. `tokens_per_second` is what it generates, prefill included, many requests at once.

    It is None where it was not measured.
    """

    path: str
    bytes: int  # of its files of weights
    held_bytes: int  # of its weights in memory, in the layout of the kernels that run
    kv_token_bytes: int  # what a token takes in the KV pool
    tokens_per_second: float | None
    perplexity: Estimate
    exact_match: Estimate | None  # None where the data expect no answer
    kernels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All of it. `noise` is None where it was not asked for, `flips` where the data expect no answer."""

    sequences: int
    positions: int
    answers: int
    candidate: ModelFigures
    against: ModelFigures
    divergence: Divergence
    flips: Flips | None
    noise: Noise | None
    by_position: list[Position]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def mean_of(sequences: Sequence[Numbers], *, least: float = -inf, most: float = inf) -> Estimate:
    """The mean over all positions of all sequences; it cannot be below `least` or above `most`."""
    sums = np.array([each.sum() for each in sequences])
    counts = np.array([len(each) for each in sequences], np.float64)
    mean, of = float(sums.sum() / counts.sum()), len(sequences)
    if of < 2:
        return Estimate(mean, None, None, None)
    error = sqrt(of / (of - 1) * float(((sums - mean * counts) ** 2).sum())) / float(counts.sum())
    return Estimate(mean, error, max(least, mean - Z * error), min(most, mean + Z * error))


def share_of(hits: int, of: int) -> Estimate:
    """The share of `of` sequences, with Wilson's interval."""
    share, weight = hits / of, 1 + Z**2 / of
    middle = (share + Z**2 / (2 * of)) / weight
    width = Z / weight * sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    return Estimate(share, sqrt(share * (1 - share) / of), max(0.0, middle - width), min(1.0, middle + width))


def by_position(sequences: Sequence[Compared]) -> list[Position]:
    """The divergence along the sequences, at most MOST_BINS ranges of equal width."""
    longest = max(len(each.divergence) for each in sequences)
    width = -(-longest // MOST_BINS)
    at = np.concatenate([np.arange(len(each.divergence)) // width for each in sequences])
    every = np.concatenate([each.divergence for each in sequences])
    ranges = ((first, every[at == first // width]) for first in range(0, longest, width))
    return [
        Position(
            first, min(first + width, longest) - 1, len(found), float(found.mean()), float(np.quantile(found, 0.99))
        )
        for first, found in ranges
    ]
