"""Histograms that add up: how many observations fell in each of a row of buckets that grow by a fixed factor.

Bucket `n` holds the values from `GROWTH ** n` up to `GROWTH ** (n + 1)`; a percentile is told as the middle of its
bucket, so it is at most `ERROR` off. Sums of such counts over minutes, hours or models are as exact as each of them.
(Masson, Rim, Lee: DDSketch, a fast and fully-mergeable quantile sketch with relative-error guarantees, VLDB 2019.)
"""

from collections.abc import Mapping
from typing import Final

ERROR: Final = 0.02
GROWTH: Final = (1 + ERROR) / (1 - ERROR)
SMALLEST: Final = 0.0005
"""Seconds. What is less counts as this: a quantity that is not told apart from none."""


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """The value that `share` (0 to 1) of the observations do not exceed, within `ERROR`. None without observations."""
    wanted = share * sum(buckets.values())
    reached = 0
    for number in sorted(buckets):
        reached += buckets[number]
        if reached >= wanted and reached > 0:
            return _middle(number)
    return None


def _middle(number: int) -> float:
    # The value whose relative distance to both of the bucket's ends is the same.
    return 2.0 * GROWTH ** (number + 1) / (GROWTH + 1)
