"""Sticky, even, independent shares."""

import pytest
from penstock.rollouts.assignment import Arm, Unit, assign, place

PLACE = 0.6903756769770816
USERS = [f"user-{number}" for number in range(4000)]


def candidates(seed: str, share: float, unit: Unit = Unit.USER) -> set[str]:
    return {user for user in USERS if assign(seed, unit, user, share) is Arm.CANDIDATE}


def test_places_are_spread_evenly() -> None:
    counts = [0] * 20
    for user in USERS:
        counts[int(place("rollout", Unit.USER, user) * 20)] += 1
    chi_squared = sum((count - 200) ** 2 / 200 for count in counts)
    assert 3 < chi_squared < 43.8, "beyond one in a thousand of 19 degrees of freedom, or too even to be by chance"


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_a_share_of_units_is_the_candidates(share: float) -> None:
    expected = share * len(USERS)
    assert abs(len(candidates("rollout", share)) - expected) < 4 * (expected * (1 - share)) ** 0.5


def test_who_is_on_the_candidate_stays_there_when_the_share_rises() -> None:
    before: set[str] = set()
    for share in (0.0, 0.01, 0.05, 0.25, 0.5, 1.0):
        now = candidates("rollout", share)
        assert before <= now
        before = now
    assert before == set(USERS)
    assert candidates("rollout", 0.0) == set()


def test_rollouts_are_independent_of_each_other() -> None:
    one, other = candidates("rollout a", 0.5), candidates("rollout b", 0.5)
    assert abs(len(one & other) - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert one != candidates("rollout a", 0.5, Unit.TENANT)


def test_no_two_units_read_alike() -> None:
    assert place("ab", Unit.USER, "c") != place("a", Unit.USER, "bc")
    assert place("a", Unit.USER, "é") == place("a", Unit.USER, "é")


def test_places_do_not_change_between_versions_of_this_code() -> None:
    assert place("rollout", Unit.JOB, "job_1") == pytest.approx(PLACE, abs=1e-12)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        assign("rollout", Unit.JOB, "job_1", 1.5)


def test_all_but_jobs_are_sticky() -> None:
    assert [unit.sticky for unit in (Unit.JOB, Unit.USER, Unit.TENANT)] == [False, True, True]
