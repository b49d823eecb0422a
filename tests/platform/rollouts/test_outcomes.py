"""Ends of jobs become evidence: each unit once, however the ends are cut into turns."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.jobs.states import JobState
from penstock.rollouts.assignment import Arm
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.failures import ASKED_WRONGLY, model_may_be_to_blame
from penstock.rollouts.outcomes import Fresh, Outcome, fold
from penstock.rollouts.statistics import Sample, Tally

TAUS = {"<512": 1.0}
CANDIDATE, CHAMPION = Arm.CANDIDATE, Arm.CHAMPION
FINE = Outcome("job_1", CANDIDATE, 0.1, 0, None, completed=True, failed=False, stratum="<512", seconds=0.5)


def folded(*outcomes: Outcome, before: Evidence | None = None, units: dict[str, Fresh] | None = None) -> Evidence:
    return fold(before or Evidence(), outcomes, units or {}, TAUS, 0)


def named(*outcomes: Outcome) -> list[Outcome]:
    return [replace(outcome, job_id=f"job_{number:04}") for number, outcome in enumerate(outcomes)]


def test_each_job_counts_where_it_was_assigned() -> None:
    failed, slow = replace(FINE, failed=True), replace(FINE, seconds=1.5)
    champion = replace(FINE, arm=CHAMPION)
    seen = folded(*named(failed, champion, slow, replace(champion, failed=True), replace(failed, share=0.5)))
    assert seen.failures == Tally().plus(0.1, 1, 1).plus(0.5, 1)
    assert seen.slow == {"<512": Tally().plus(0.1, 1)}
    assert seen.step_units == 3
    assert seen.pairs["errors"] == Sample().plus(1, -1)
    assert seen.pairs["slow"] == Sample().plus(0, 1)
    assert seen.waiting == {"errors": (1.0,), "slow": (0.0,)}


def test_a_unit_of_an_earlier_step_is_none_of_this_one() -> None:
    assert fold(Evidence(), [FINE], {}, TAUS, 1).step_units == 0


@pytest.mark.parametrize(
    ("change", "slow"),
    [
        ({}, False),
        ({"seconds": 1.5}, True),
        ({"seconds": None}, None),
        ({"stratum": "rest"}, None),
        ({"stratum": None}, None),
        ({"completed": False}, None),
        ({"completed": False, "seconds": 1.5}, True),
    ],
    ids=str,
)
def test_what_is_slow(change: dict[str, object], slow: bool | None) -> None:
    outcome = replace(FINE, **change)  # type: ignore[arg-type]  # its own fields
    assert outcome.slow(TAUS) is slow
    seen = folded(outcome)
    assert seen.waiting.get("slow", ()) == (() if slow is None else (float(slow),))


def test_a_job_that_was_broken_off_is_no_proof_of_health() -> None:
    seen = folded(replace(FINE, completed=False), replace(FINE, arm=CHAMPION, completed=False))
    assert (seen.step_units, seen.pairs, seen.waiting) == (0, {}, {})


def test_a_user_counts_once_with_the_first_failure_the_first_slow_job_and_the_first_job() -> None:
    jobs = named(*[replace(FINE, key="ann")] * 6)
    ends = [
        jobs[1],
        replace(jobs[2], failed=True),
        replace(jobs[0], seconds=0.1),
        replace(jobs[3], failed=True, share=0.5),
        replace(jobs[4], seconds=9.0),
        replace(jobs[5], seconds=9.0),
    ]
    seen = folded(*ends, units={"ann": Fresh("job_0000")})
    assert (seen.failures, seen.slow) == (Tally().plus(0.1, 1), {"<512": Tally().plus(0.1, 1)})
    assert seen.waiting == {"errors": (0.0,), "slow": (0.0,)}
    assert seen.step_units == 1


outcomes = st.builds(
    Outcome,
    job_id=st.just(""),
    arm=st.sampled_from(Arm),
    share=st.sampled_from([0.1, 0.5]),
    step=st.sampled_from([0, 1]),
    key=st.sampled_from([None, "ann", "bob"]),
    completed=st.booleans(),
    failed=st.booleans(),
    stratum=st.sampled_from(["<512", "rest"]),
    seconds=st.none() | st.sampled_from([0.5, 2.0]),
)


@given(st.lists(outcomes, max_size=25), st.lists(st.integers(0, 25), max_size=5), st.randoms(use_true_random=False))
def test_turns_make_no_difference(ends: list[Outcome], cuts: list[int], luck: object) -> None:
    ends = named(*ends)
    luck.shuffle(ends)  # type: ignore[attr-defined]  # a Random: jobs end in any order
    firsts = {key: min((end.job_id for end in ends if end.key == key), default="") for key in ("ann", "bob")}
    whole = folded(*ends, units={key: Fresh(first) for key, first in firsts.items()})
    units = {key: Fresh(first) for key, first in firsts.items()}
    turned = Evidence()
    for start, stop in pairwise([0, *sorted(cuts), len(ends)]):
        turned = fold(turned, ends[start:stop], units, TAUS, 0)
    assert Evidence.from_json(turned.to_json()) == whole


@given(st.lists(outcomes, max_size=25), st.randoms(use_true_random=False))
def test_counts_of_jobs_do_not_depend_on_the_order_of_their_ends(ends: list[Outcome], luck: object) -> None:
    ends = named(*(replace(end, key=None) for end in ends))
    one = folded(*ends)
    luck.shuffle(ends)  # type: ignore[attr-defined]  # a Random
    other = folded(*ends)
    assert (one.failures, one.slow, one.step_units) == (other.failures, other.slow, other.step_units)


@pytest.mark.parametrize("state", [state for state in JobState if state.final])
def test_only_failures_speak_against_a_version(state: JobState) -> None:
    assert model_may_be_to_blame(state, {"code": "logits_not_finite"}) is (state is JobState.FAILED)


@pytest.mark.parametrize("code", sorted(ASKED_WRONGLY))
def test_what_no_version_can_do_speaks_against_none(code: str) -> None:
    assert not model_may_be_to_blame(JobState.FAILED, {"code": code})
    assert model_may_be_to_blame(JobState.FAILED, None)
