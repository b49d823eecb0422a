"""Estimates, against simulation, closed forms and scipy."""

import numpy as np
import pytest
from penstock_compress.figures import MOST_BINS, Compared, Divergence, Flips, Numbers, by_position, mean_of, share_of
from scipy.stats import binomtest  # type: ignore[import-untyped]  # scipy ships no types


def clustered(draw: np.random.Generator, sequences: int) -> list[Numbers]:
    """Sequences of unlike lengths whose positions share most of their error; the mean of all is 2."""
    lengths = draw.integers(1, 30, sequences)
    return [2 + draw.normal(0, 1) + draw.normal(0, 0.3, int(length)) for length in lengths]


def test_intervals_of_means_hold_when_positions_of_a_sequence_err_together() -> None:
    draw = np.random.default_rng(1)
    found = [mean_of(clustered(draw, 60)) for _ in range(600)]
    held = sum(each.low <= 2 <= each.high for each in found if each.low is not None and each.high is not None)
    assert 0.92 < held / len(found) < 0.98
    spread = np.std([each.value for each in found])
    errors = np.array([each.error for each in found], float)
    assert errors.mean() == pytest.approx(spread, rel=0.1)


def test_a_mean_counts_positions_and_its_error_sequences() -> None:
    even = mean_of([np.array([1.0, 1.0]), np.array([3.0, 3.0])])
    assert even.value == 2.0
    assert even.error == pytest.approx(1.0)  # of two independent numbers 1 and 3
    assert mean_of([np.array([1.0]), np.array([4.0, 4.0, 4.0])]).value == 3.25
    assert mean_of([np.array([1.0, 2.0])]).error is None
    bounded = mean_of([np.zeros(5), np.ones(5)], least=0, most=1)
    assert (bounded.low, bounded.high) == (0, 1)


@pytest.mark.parametrize(("hits", "of"), [(0, 40), (3, 40), (40, 40), (1, 1)])
def test_shares_have_wilsons_interval(hits: int, of: int) -> None:
    found, right = share_of(hits, of), binomtest(hits, of).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((right.low, right.high), abs=1e-6)
    assert found.value == hits / of


def sequence(divergence: list[float], same: list[float], surprise: list[float]) -> Compared:
    own = np.array(surprise)
    return Compared(np.array(divergence), np.array(same), own, own - 0.1)


def test_divergence_sums_up_positions() -> None:
    found = Divergence.of(
        [sequence([0.0, 1.0, 2.0], [1, 0, 1], [0.5, 0.6, 0.7]), sequence([5.0], [0], [2.0])],
    )
    assert (found.mean.value, found.median, found.max, found.same_top.value) == (2.0, 1.5, 5.0, 0.5)
    assert found.p99 == pytest.approx(np.quantile([0, 1, 2, 5], 0.99))
    ratio = found.perplexity_ratio
    assert ratio.value == pytest.approx(np.exp(0.1))  # of surprise that each position has more
    assert ratio.error == pytest.approx(0, abs=1e-9)  # and all the same


def test_perplexity_ratios_have_the_error_of_their_logarithm() -> None:
    draw = np.random.default_rng(2)
    pairs = [(draw.normal(1, 0.2, 20), draw.normal(1, 0.2, 20)) for _ in range(30)]
    found = Divergence.of([Compared(np.zeros(20), np.ones(20), own, other) for own, other in pairs]).perplexity_ratio
    difference = mean_of([own - other for own, other in pairs])
    assert difference.error is not None
    assert difference.high is not None
    assert found.error == pytest.approx(difference.error * found.value, rel=1e-6)
    assert found.high == pytest.approx(np.exp(difference.high))


def test_flips_go_both_ways() -> None:
    found = Flips.of([True, True, False, False], [True, False, True, True])
    assert (found.answers, found.right_to_wrong, found.wrong_to_right, found.share.value) == (4, 2, 1, 0.75)


def test_positions_are_told_in_ranges_that_leave_none_out() -> None:
    long = 3 * MOST_BINS + 1
    found = by_position([sequence(list(range(each)), [1] * each, [0.0] * each) for each in (long, 7, 1)])
    assert len(found) <= MOST_BINS
    assert sum(each.count for each in found) == long + 7 + 1
    assert (found[0].first, found[-1].last) == (0, long - 1)
    assert [each.first for each in found[1:]] == [each.last + 1 for each in found[:-1]]
    assert found[0].count == 4 + 4 + 1
    assert found[0].mean == pytest.approx((0 + 1 + 2 + 3) * 2 / 9)
