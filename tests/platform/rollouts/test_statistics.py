"""The tests' own arithmetic: fair bets, known values, and what counts alone must be enough for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.rollouts.statistics import (
    CONCENTRATION,
    FRACTIONS,
    RATIOS,
    Interval,
    Sample,
    Split,
    Tally,
    log_mean_evidence,
    log_multinomial_evidence,
    log_ratio_evidence,
    log_sample_ratio_evidence,
    log_stratified_evidence,
    log_threshold,
    mean_capitals,
    mean_factors,
    mean_interval,
    ratio_factors,
)
from scipy import integrate, stats

shares = st.floats(0.001, 0.999)


@given(share=shares, tolerated=st.floats(1.0, 10.0), kinder=st.floats(0.01, 1.0))
def test_no_bettor_gains_from_failures_in_the_mean_while_there_is_no_harm(
    share: float, tolerated: float, kinder: float
) -> None:
    ours, theirs = (np.exp(factors) for factors in ratio_factors(share, tolerated))
    worst = share * tolerated / (share * tolerated + 1 - share)
    assert worst * ours + (1 - worst) * theirs == pytest.approx(np.ones(len(RATIOS)), rel=1e-9)
    chance = worst * kinder
    assert np.all(chance * ours + (1 - chance) * theirs <= 1 + 1e-9)


def test_one_failure_is_worth_what_the_bets_say() -> None:
    ratio, share = np.array(RATIOS), 0.1
    wrong = share * ratio / (share * ratio + 1 - share)
    assert log_ratio_evidence(Tally().plus(share, candidate=1)) == pytest.approx(math.log(np.mean(wrong / share)))
    assert log_ratio_evidence(Tally().plus(share, champion=1)) == pytest.approx(
        math.log(np.mean((1 - wrong) / (1 - share)))
    )
    assert log_ratio_evidence(Tally()) == pytest.approx(0.0)


def test_failures_at_several_shares_are_one_run_of_bets() -> None:
    tally = Tally().plus(0.05, candidate=2, champion=7).plus(0.5, candidate=4, champion=3)
    products = [
        sum(count * factors[at] for count, factors in zip(counts, ratio_factors(share), strict=True))
        for at in range(len(RATIOS))
        for counts, share in (((2, 7), 0.05), ((4, 3), 0.5))
    ]
    capitals = np.exp(np.array(products).reshape(-1, 2).sum(axis=1))
    assert log_ratio_evidence(tally) == pytest.approx(math.log(capitals.mean()))


def test_a_tally_is_the_same_in_whichever_order_it_was_counted() -> None:
    one = Tally().plus(0.5, champion=1).plus(0.1, candidate=3).plus(0.5, candidate=2)
    other = Tally().plus(0.1, candidate=1) + Tally().plus(0.5, 2, 1) + Tally().plus(0.1, candidate=2)
    assert one == other == Tally((Split(0.1, 3, 0), Split(0.5, 2, 1)))
    assert (one.candidate, one.champion, one.total) == (5, 1, 6)


@pytest.mark.parametrize(("share", "candidate"), [(0.0, 1), (1.0, 1), (0.5, -1)])
def test_counts_that_cannot_be_are_refused(share: float, candidate: int) -> None:
    with pytest.raises(ValueError, match="must"):
        Split(share, candidate)


def test_harm_in_one_stratum_is_seen_through_the_others() -> None:
    calm = Tally().plus(0.1, candidate=60, champion=640)
    harmed = Tally().plus(0.1, candidate=12, champion=16)
    everywhere = {"short": calm, "long": harmed, "rest": calm}
    assert log_stratified_evidence(everywhere) > log_threshold(0.01)
    product = sum(log_ratio_evidence(tally) for tally in everywhere.values())
    assert product < log_threshold(0.01), "multiplied, the strata without harm would have hidden it"
    assert log_stratified_evidence({"short": calm, "rest": calm}) < 0


def test_harm_in_all_strata_is_seen_in_their_sum() -> None:
    little = Tally().plus(0.1, candidate=3, champion=4)
    assert (
        log_ratio_evidence(little)
        < log_threshold(0.01)
        < log_stratified_evidence({"a": little, "b": little, "c": little})
    )


def test_strata_stake_half_on_all_and_half_on_each() -> None:
    one, other = Tally().plus(0.2, 5, 5), Tally().plus(0.2, 1, 9)
    halves = [
        log_ratio_evidence(one + other),
        np.logaddexp(log_ratio_evidence(one), log_ratio_evidence(other)) - math.log(2),
    ]
    assert log_stratified_evidence({"a": one, "b": other}) == pytest.approx(np.logaddexp(*halves) - math.log(2))
    assert log_stratified_evidence({}) == 0.0


@given(
    low=st.floats(-1.0, 0.4),
    high=st.floats(0.5, 1.0),
    part=st.floats(0.0, 1.0),
    further=st.floats(0.0, 0.2),
    above=st.booleans(),
)
def test_no_bettor_gains_from_a_mean_within_its_bound(
    low: float, high: float, part: float, further: float, above: bool
) -> None:
    mean = (1 - part) * low + part * high
    bound = min(max(mean + (further if above else -further), -0.99), 0.99)
    if above != (mean <= bound):
        return
    factors = np.exp(mean_factors(np.array([low, high]), bound, above=above))
    assert np.all((1 - part) * factors[0] + part * factors[1] <= 1 + 1e-9)


def test_capital_against_a_mean_is_the_average_of_the_bettors() -> None:
    sample = Sample(lower=0.0).plus(0.25, 1.0, 0.25)
    fraction = np.array(FRACTIONS)
    up = ((1 - fraction) + fraction * 0.25 / 0.4) ** 2 * ((1 - fraction) + fraction / 0.4)
    down = ((1 - fraction) + fraction * 0.75 / 0.6) ** 2 * (1 - fraction)
    assert log_mean_evidence(sample, 0.4, above=True) == pytest.approx(math.log(up.mean()))
    assert log_mean_evidence(sample, 0.4, above=False) == pytest.approx(math.log(down.mean()))
    assert mean_capitals(sample, 0.4, above=True) == pytest.approx(np.log(up))


def test_the_interval_ends_where_the_evidence_does() -> None:
    sample = Sample(((-1000, 20), (0, 150), (500, 30), (1000, 40)))
    interval = mean_interval(sample, alpha_low=0.05, alpha_high=0.01)
    assert interval.low < sample.mean < interval.high
    assert log_mean_evidence(sample, interval.low, above=True) == pytest.approx(log_threshold(0.05), abs=1e-4)
    assert log_mean_evidence(sample, interval.high, above=False) == pytest.approx(log_threshold(0.01), abs=1e-4)


def test_without_values_the_mean_may_be_anything() -> None:
    assert mean_interval(Sample(lower=0.0), alpha_low=0.05, alpha_high=0.05) == Interval(0.0, 1.0)
    assert mean_interval(Sample(), alpha_low=0.05, alpha_high=0.05) == Interval(-1.0, 1.0)
    same = Sample().plus(*[1.0] * 50)
    assert mean_interval(same, alpha_low=0.05, alpha_high=0.05).high == 1.0
    assert mean_interval(same, alpha_low=0.05, alpha_high=0.05).low > 0.75


def test_values_are_kept_in_thousandths_and_within_their_bounds() -> None:
    sample = Sample().plus(0.1234, 0.1226, -1.0).plus(0.1234)
    assert sample.counts == ((-1000, 1), (123, 3))
    assert sample.size == 4
    assert sample.mean == pytest.approx((3 * 0.123 - 1) / 4)
    for outside in (1.01, -1.01, math.nan):
        with pytest.raises(ValueError, match="must lie"):
            Sample().plus(outside)
    with pytest.raises(ValueError, match="must lie"):
        Sample(lower=0.0).plus(-0.001)
    with pytest.raises(ValueError, match="lower"):
        Sample(lower=0.5)
    with pytest.raises(ValueError, match="bound"):
        log_mean_evidence(Sample(lower=0.0), 0.0, above=True)


def test_the_sample_ratio_test_is_the_integral_over_its_mixture() -> None:
    ours, theirs, planned, prior = 70, 430, 0.1, CONCENTRATION
    mixture = stats.beta(prior * planned, prior * (1 - planned))

    def likelihood_ratio(true: float) -> float:
        return float(mixture.pdf(true) * (true / planned) ** ours * ((1 - true) / (1 - planned)) ** theirs)

    integral, _ = integrate.quad(likelihood_ratio, 0.02, 0.4, points=[0.1, 0.14], epsabs=1e-12)
    assert log_multinomial_evidence((ours, theirs), (planned, 1 - planned)) == pytest.approx(
        math.log(integral), rel=1e-6
    )
    both = Tally().plus(planned, ours, theirs).plus(0.5, 10, 12)
    alone = log_multinomial_evidence((10, 12), (0.5, 0.5))
    assert log_sample_ratio_evidence(both) == pytest.approx(math.log(integral) + alone, rel=1e-6)


def test_the_sample_ratio_test_takes_more_than_two_kinds() -> None:
    fair = log_multinomial_evidence((1000, 2000, 3000), (1 / 6, 2 / 6, 3 / 6))
    unfair = log_multinomial_evidence((1200, 1800, 3000), (1 / 6, 2 / 6, 3 / 6))
    assert fair < 0 < log_threshold(0.001) < unfair


def test_guardrails_share_what_may_go_wrong() -> None:
    assert log_threshold(0.05) == pytest.approx(math.log(20))
    assert log_threshold(0.05, tests=3) == pytest.approx(math.log(60))
