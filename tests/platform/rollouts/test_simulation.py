"""False alarms at every peek, and power, where the truth is known; and that a wrong test would be found out."""

from collections.abc import Callable

import numpy as np
import pytest
from penstock.rollouts.simulation import (
    NEVER,
    Alarms,
    World,
    false_alarms_and_power,
    first_at,
    first_of_each,
    log_mean,
    mean_path,
    quantile,
    ratio_path,
    sample_ratio_path,
    streams,
)
from penstock.rollouts.statistics import (
    Floats,
    Sample,
    Tally,
    log_mean_evidence,
    log_ratio_evidence,
    log_sample_ratio_evidence,
    log_threshold,
)

ALPHA = 0.05


def test_paths_are_what_the_counts_say_after_each_unit() -> None:
    rng = np.random.default_rng(3)
    candidate, share = rng.random(60) < 0.3, np.repeat([0.1, 0.4], 30)
    failures, units = log_mean(ratio_path(candidate, share, 1.5)), sample_ratio_path(candidate, 0.3)
    values = rng.integers(-1, 2, 60).astype(float)
    above, below = (log_mean(mean_path(values, 0.1, above=side)) for side in (True, False))
    tally, unit_tally, sample = Tally(), Tally(), Sample()
    for at in range(60):
        tally = tally.plus(float(share[at]), int(candidate[at]), int(~candidate[at]))
        unit_tally = unit_tally.plus(0.3, int(candidate[at]), int(not candidate[at]))
        sample = sample.plus(float(values[at]))
        assert failures[at] == pytest.approx(log_ratio_evidence(tally, tolerated=1.5))
        assert units[at] == pytest.approx(log_sample_ratio_evidence(unit_tally), abs=1e-9)
        assert above[at] == pytest.approx(log_mean_evidence(sample, 0.1, above=True))
        assert below[at] == pytest.approx(log_mean_evidence(sample, 0.1, above=False))


@pytest.mark.parametrize(
    "world",
    [
        World(),
        World(shares=(0.01, 0.05, 0.25, 0.5), swing=4.0),
        World(tenants=200),
        World(tenants=200, sticky=True, once=True, shares=(0.05, 0.25, 0.5)),
    ],
    ids=["plain", "rising shares and a drifting rate", "unlike tenants", "sticky, each key once"],
)
def test_no_harm_is_rarely_taken_for_harm_though_every_job_is_looked_at(world: World) -> None:
    alarms = false_alarms_and_power(world, alpha=ALPHA, runs=200, seed=11)
    assert alarms.rate <= ALPHA


def test_counting_every_job_of_a_sticky_tenant_is_wrong_and_seen_to_be() -> None:
    alarms = false_alarms_and_power(World(tenants=200, sticky=True), alpha=0.01, runs=250, seed=7)
    assert 0.09 < alarms.rate < 0.21


def repeated_z_test(candidate: np.ndarray, share: float) -> Floats:
    """What many do: a normal approximation, looked at after each failure as though it were the last."""
    count = np.arange(1, len(candidate) + 1)
    z = (np.cumsum(candidate) - share * count) / np.sqrt(count * share * (1 - share))
    return np.asarray(np.where(count < 10, 0.0, z))


def test_the_simulation_finds_out_a_test_that_must_not_be_repeated() -> None:
    wrong = right = 0
    for stream in streams(World(), 200, seed=5):
        ours = stream.candidate[stream.failed]
        wrong += first_at(repeated_z_test(ours, 0.1), 1.645) is not None
        right += first_at(log_mean(ratio_path(ours, stream.share[stream.failed])), log_threshold(ALPHA)) is not None
    assert wrong / 200 > 4 * ALPHA
    assert right / 200 <= ALPHA


@pytest.mark.parametrize(("ratio", "jobs", "exposed"), [(10.0, 550, 55), (30.0, 150, 15)])
def test_harm_is_found_soon(ratio: float, jobs: int, exposed: int) -> None:
    alarms = false_alarms_and_power(World(ratio=ratio, jobs=4000), alpha=0.01, runs=400, seed=2)
    assert alarms.rate > 0.99
    half = alarms.quantile(0.5)
    assert jobs / 3 < half[0] <= jobs
    assert exposed / 3 < half[1] <= exposed


def bounded(draw: Callable[[np.random.Generator], Floats], bound: float, above: bool, runs: int, lower: float) -> float:
    rng = np.random.default_rng(9)
    found = (log_mean(mean_path(draw(rng), bound, lower=lower, above=above)) for _ in range(runs))
    return sum(first_at(path, log_threshold(ALPHA)) is not None for path in found) / runs


@pytest.mark.parametrize("above", [True, False])
def test_a_mean_at_its_bound_is_rarely_said_to_be_beyond(above: bool) -> None:
    def rare(rng: np.random.Generator) -> Floats:
        return (rng.random(1500) < 0.03).astype(float)

    def paired(rng: np.random.Generator) -> Floats:
        return (rng.random(1500) < 0.07).astype(float) - (rng.random(1500) < 0.05)

    assert bounded(rare, 0.03, above, runs=200, lower=0.0) <= ALPHA
    assert bounded(paired, 0.02, above, runs=200, lower=-1.0) <= ALPHA
    assert bounded(paired, 0.0 if above else 0.05, above, runs=50, lower=-1.0) > 0.4


def test_a_wrong_assignment_is_noticed_and_a_right_one_is_not() -> None:
    rng = np.random.default_rng(4)
    right = [sample_ratio_path(rng.random(5000) < 0.1, 0.1) for _ in range(300)]
    wrong = [sample_ratio_path(rng.random(5000) < 0.13, 0.1) for _ in range(50)]
    assert sum(first_at(path, log_threshold(ALPHA)) is not None for path in right) / 300 <= ALPHA
    assert sum(first_at(path, log_threshold(ALPHA)) is not None for path in wrong) / 50 > 0.95


def test_a_run_can_be_had_again() -> None:
    world = World(ratio=5, jobs=1000, tenants=20, sticky=True)
    assert false_alarms_and_power(world, alpha=ALPHA, runs=5, seed=1) == false_alarms_and_power(
        world, alpha=ALPHA, runs=5, seed=1
    )


def test_streams_are_as_described() -> None:
    world = World(error_rate=0.05, ratio=3, shares=(0.1, 0.5), jobs=40_000, tenants=50, sticky=True)
    (stream,) = streams(world, 1, seed=8)
    assert np.all(stream.share[:20_000] == 0.1)
    assert np.all(stream.share[20_000:] == 0.5)
    for half in (slice(0, 20_000), slice(20_000, 40_000)):
        arms = {
            (int(tenant), bool(arm)) for tenant, arm in zip(stream.tenant[half], stream.candidate[half], strict=True)
        }
        assert len(arms) == len({tenant for tenant, _ in arms}), "a tenant is on one arm at a time"
    moved = set(stream.tenant[:20_000][stream.candidate[:20_000]]) - set(
        stream.tenant[20_000:][stream.candidate[20_000:]]
    )
    assert not moved, "raising the share keeps those who are on the candidate"
    counts = np.bincount(stream.tenant)
    assert counts[0] > 3 * counts[9] > 0


def test_alarms_say_how_many_and_when() -> None:
    alarms = Alarms((100.0, NEVER, 300.0, 200.0), (10.0, NEVER, 30.0, 20.0))
    assert alarms.rate == 0.75
    assert alarms.quantile(0.5) == (200.0, 20.0)
    assert alarms.quantile(0.9) == (NEVER, NEVER)
    assert quantile((3.0, 1.0, 2.0), 0.01) == 1.0
    assert 0.75 < alarms.bound < 1.0
    none = Alarms((NEVER,) * 1000, (NEVER,) * 1000)
    assert none.bound == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-6)


def test_only_the_first_of_each_key_counts() -> None:
    assert first_of_each(np.array([5, 3, 5, 7, 3])).tolist() == [0, 1, 3]
