"""Verdicts: harm rolls back, proven harmlessness promotes, anything else holds and says how many jobs it wants."""

import math
from dataclasses import replace

import pytest
from penstock.rollouts.assignment import Arm
from penstock.rollouts.evidence import Comparison, Evidence, OfflineFigures, paired
from penstock.rollouts.free_running import Ended, FreeRun
from penstock.rollouts.policy import AB, Breaker, Policy, read_policy
from penstock.rollouts.states import START, Position, State, course
from penstock.rollouts.statistics import Sample, Tally, log_mean_evidence, log_threshold
from penstock.rollouts.verdicts import Judgement, Verdict, guardrails, judge, units_needed

POLICY = Policy(ab=AB())
GATES = [position for position in course(POLICY) if position.state.gate]
FIRST, LAST = Position(State.CANARY, 0), Position(State.CANARY, 3)
EQUAL = Sample(((0, 5000),))
GOOD = Evidence(
    step_units=2500,
    units=Tally().plus(0.5, 2500, 2500),
    failures=Tally().plus(0.5, 25, 25),
    slow={"<512": Tally().plus(0.5, 125, 125)},
    pairs={
        "errors": Sample(((-1000, 25), (0, 2450), (1000, 25))),
        "slow": Sample(((-1000, 120), (0, 2260), (1000, 120))),
    },
)
SCORED = {"mean_kld": Sample(((30, 400),), lower=0.0), "disagreement": Sample(((40, 400),), lower=0.0)}


def reasons(judgement: Judgement, verdict: Verdict) -> list[str]:
    return [reason.name for reason in judgement.reasons if reason.verdict is verdict]


@pytest.mark.parametrize("position", GATES, ids=lambda position: position.title)
def test_no_data_never_promotes(position: Position) -> None:
    for evidence in (Evidence(), Evidence(seconds=10**9, step_units=10**6, units=Tally().plus(0.5, 10**6, 10**6))):
        judgement = judge(position, POLICY, evidence)
        assert judgement.verdict is Verdict.HOLD
        assert judgement.jobs_needed is None or judgement.jobs_needed > 0


def test_where_there_is_no_gate_there_is_no_judgement() -> None:
    for position in (START, Position(State.PROMOTED), Position(State.AB)):
        with pytest.raises(ValueError, match="no gate"):
            judge(position, Policy(), GOOD)


def test_a_version_that_is_no_worse_passes() -> None:
    judgement = judge(LAST, POLICY, GOOD)
    assert judgement.verdict is Verdict.PROMOTE
    assert reasons(judgement, Verdict.PROMOTE) == ["errors", "latency", "minimum"]
    assert judgement.jobs_needed == 0
    errors = judgement.reasons[0]
    assert errors.figures["low"] < 0 < errors.figures["high"] < errors.figures["margin"] == 0.02


@pytest.mark.parametrize("alpha", [0.01, 0.001])
def test_nothing_passes_before_it_is_proven_as_surely_as_the_policy_wants(alpha: float) -> None:
    policy = read_policy(f"{{alphas: {{promotion: {alpha}}}, latency: null}}")

    def verdict(pairs: int) -> Verdict:
        return judge(LAST, policy, replace(GOOD, pairs={"errors": Sample(((0, pairs),))})).verdict

    def proven(pairs: int) -> bool:
        return log_mean_evidence(Sample(((0, pairs),)), 0.02, above=False) >= log_threshold(alpha)

    enough = next(pairs for pairs in range(1, 2000) if proven(pairs))
    assert enough > math.log(1 / alpha) / math.log(1.02)
    assert (verdict(enough - 1), verdict(enough)) == (Verdict.HOLD, Verdict.PROMOTE)


@pytest.mark.parametrize("missing", ["errors", "slow"])
def test_every_guardrail_has_to_pass(missing: str) -> None:
    evidence = replace(GOOD, pairs={name: sample for name, sample in GOOD.pairs.items() if name != missing})
    assert judge(LAST, POLICY, evidence).verdict is Verdict.HOLD


def test_more_failures_than_its_share_explains_roll_back() -> None:
    judgement = judge(FIRST, POLICY, replace(GOOD, failures=Tally().plus(0.01, 4, 20)))
    assert judgement.verdict is Verdict.ROLLBACK
    assert reasons(judgement, Verdict.ROLLBACK) == ["errors"]
    assert "4 of 24" in judgement.reasons[0].text
    assert judge(FIRST, POLICY, replace(GOOD, failures=Tally().plus(0.01, 1, 20))).verdict is Verdict.PROMOTE


def test_a_policy_may_tolerate_more_failures() -> None:
    twice = replace(GOOD, failures=Tally().plus(0.5, 90, 40))
    assert judge(LAST, POLICY, twice).verdict is Verdict.ROLLBACK
    assert judge(LAST, read_policy("errors: {tolerated_ratio: 2}"), twice).verdict is Verdict.PROMOTE


def test_slow_jobs_in_one_stratum_roll_back() -> None:
    slow = {"<512": Tally().plus(0.05, 10, 190), "rest": Tally().plus(0.05, 12, 20)}
    judgement = judge(Position(State.CANARY, 1), POLICY, replace(GOOD, slow=slow))
    assert reasons(judgement, Verdict.ROLLBACK) == ["latency"]
    without = read_policy("latency: null")
    assert judge(Position(State.CANARY, 1), without, replace(GOOD, slow=slow)).verdict is Verdict.PROMOTE


def test_guardrails_share_the_chance_of_a_false_rollback() -> None:
    """The same failures are harm to a policy that watches nothing else."""
    failures = replace(GOOD, failures=Tally().plus(0.05, 5, 10))
    position = Position(State.CANARY, 1)
    assert guardrails(POLICY, State.CANARY) == 2
    assert guardrails(POLICY, State.AB) == 3
    assert guardrails(POLICY, State.SHADOW) == 2
    assert (
        judge(position, read_policy("{alphas: {rollback: 0.01}, latency: null}"), failures).verdict is Verdict.ROLLBACK
    )
    assert judge(position, read_policy("alphas: {rollback: 0.01}"), failures).verdict is not Verdict.ROLLBACK


def test_crashes_roll_back_at_once() -> None:
    assert judge(FIRST, POLICY, Evidence(crashes=2)).verdict is Verdict.HOLD
    judgement = judge(FIRST, POLICY, Evidence(crashes=3))
    assert reasons(judgement, Verdict.ROLLBACK) == ["breaker"]
    assert judge(FIRST, Policy(breaker=Breaker(crashes=1)), Evidence(crashes=1)).verdict is Verdict.ROLLBACK


def test_units_that_went_astray_hold_what_would_pass() -> None:
    judgement = judge(LAST, POLICY, replace(GOOD, units=Tally().plus(0.5, 2300, 2700)))
    assert judgement.verdict is Verdict.HOLD
    assert judgement.jobs_needed is None
    assert judgement.reasons[0].name == "sample ratio"
    assert "2300 units of 5000" in judgement.reasons[0].text


def test_the_minimum_of_the_policy_is_waited_for() -> None:
    judgement = judge(LAST, POLICY, replace(GOOD, step_units=150))
    assert judgement.verdict is Verdict.HOLD
    assert reasons(judgement, Verdict.HOLD) == ["minimum"]
    assert judgement.jobs_needed == 100, "50 units more at a share of one half"


def test_when_time_is_up_the_policy_says_what_follows() -> None:
    late = Evidence(seconds=24 * 3600)
    assert judge(FIRST, POLICY, late).verdict is Verdict.HOLD
    assert "timeout" in reasons(judge(FIRST, POLICY, late), Verdict.HOLD)
    assert "timeout" not in reasons(judge(FIRST, POLICY, Evidence(seconds=24 * 3600 - 1)), Verdict.HOLD)
    strict = read_policy("canary: {steps: [{share: 0.1, error_margin: 0.1, slow_margin: 0.1, on_timeout: rollback}]}")
    assert judge(FIRST, strict, late).verdict is Verdict.ROLLBACK
    proven = replace(GOOD, seconds=10**7)
    assert judge(FIRST, strict, proven).verdict is Verdict.PROMOTE, "what was proven late is proven"


def test_shadow_passes_what_agrees_and_rejects_what_does_not() -> None:
    position = Position(State.SHADOW)
    assert judge(position, POLICY, Evidence(scored=SCORED)).verdict is Verdict.PROMOTE
    far = SCORED | {"mean_kld": Sample(((300, 200), (900, 100)), lower=0.0)}
    judgement = judge(position, POLICY, Evidence(scored=far))
    assert reasons(judgement, Verdict.ROLLBACK) == ["mean_kld"]
    near = SCORED | {"mean_kld": Sample(((100, 200), (300, 190)), lower=0.0)}
    assert judge(position, POLICY, Evidence(scored=near)).verdict is Verdict.HOLD


def test_the_a_b_gate_listens_to_feedback() -> None:
    position = Position(State.AB)
    unheard = judge(position, POLICY, GOOD)
    assert unheard.verdict is Verdict.HOLD
    heard = replace(
        GOOD,
        judged=Tally().plus(0.5, 2500, 2500),
        pairs=GOOD.pairs | {"feedback": Sample(((-1000, 500), (0, 1500), (1000, 500)))},
    )
    assert judge(position, POLICY, heard).verdict is Verdict.PROMOTE
    worse = replace(heard, pairs=GOOD.pairs | {"feedback": Sample(((-1000, 200), (0, 1200), (1000, 500)))})
    assert reasons(judge(position, POLICY, worse), Verdict.ROLLBACK) == ["feedback"]
    silenced = replace(heard, judged=Tally().plus(0.5, 2300, 2700))
    assert reasons(judge(position, POLICY, silenced), Verdict.HOLD) == ["sample ratio of feedback"]


def test_the_number_of_jobs_still_needed_is_the_number_that_ends_the_hold() -> None:
    """Where every unit is like the last, the estimate is exact but for the bettors who are not the best."""
    for margin in (0.25, 0.1, 0.04, 0.02):
        needed = units_needed(Sample(), margin, 0.01)
        assert needed is not None
        reached = next(size for size in range(1, 10_000) if units_needed(Sample(((0, size),)), margin, 0.01) == 1)
        assert 0.7 * needed < reached <= needed


def test_the_estimate_follows_what_is_seen() -> None:
    calm = units_needed(Sample(((-1000, 2), (0, 196), (1000, 2))), 0.02, 0.01)
    lively = units_needed(Sample(((-1000, 10), (0, 180), (1000, 10))), 0.02, 0.01)
    assert calm is not None
    assert lively is None or lively > 2 * calm
    assert units_needed(Sample(((0, 150), (1000, 50))), 0.02, 0.01) is None, "at this rate it is never proven"


@pytest.mark.parametrize(("bits", "verdict"), [(8, Verdict.ROLLBACK), (4, Verdict.PROMOTE)])
def test_offline_limits_depend_on_the_bits(bits: float, verdict: Verdict) -> None:
    candidate = Comparison(mean_kld=0.03, same_top=0.94, perplexity_increase=0.02, flips=0.04)
    judgement = judge(Position(State.OFFLINE), POLICY, Evidence(offline=OfflineFigures(bits, 50_000, candidate)))
    assert judgement.verdict is verdict


FINE = Comparison(mean_kld=0.001, same_top=0.995, perplexity_increase=-0.001, flips=0.01)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"mean_kld": 0.006}, "mean_kld"),
        ({"same_top": 0.97}, "same_top"),
        ({"perplexity_increase": 0.006}, "perplexity_increase"),
        ({"flips": 0.03}, "flips"),
    ],
)
def test_each_offline_figure_may_reject(change: dict[str, float], name: str) -> None:
    def verdict_on(comparison: Comparison) -> Judgement:
        return judge(Position(State.OFFLINE), POLICY, Evidence(offline=OfflineFigures(8, 50_000, comparison)))

    assert verdict_on(FINE).verdict is Verdict.PROMOTE
    assert reasons(verdict_on(replace(FINE, **change)), Verdict.ROLLBACK) == [name]
    unmeasured = verdict_on(replace(FINE, **dict.fromkeys(change)))
    assert (unmeasured.verdict, reasons(unmeasured, Verdict.HOLD)) == (Verdict.HOLD, [name])


def test_figures_that_mean_nothing_hold() -> None:
    few = OfflineFigures(8, 9_999, FINE)
    assert judge(Position(State.OFFLINE), POLICY, Evidence(offline=few)).verdict is Verdict.HOLD
    noisy = OfflineFigures(8, 50_000, FINE, noise=Comparison(same_top=0.97, mean_kld=0.0001))
    judgement = judge(Position(State.OFFLINE), POLICY, Evidence(offline=noisy))
    assert reasons(judgement, Verdict.HOLD) == ["same_top"]
    assert judgement.reasons[0].figures == {"value": 0.995, "limit": 0.98, "noise": 0.97}


def test_evidence_is_the_same_after_a_way_through_json() -> None:
    evidence = replace(GOOD, offline=OfflineFigures(4.5, 10, FINE), scored=SCORED, crashes=1, seconds=1.5)
    back = Evidence.from_json(evidence.to_json())
    assert back == evidence
    assert judge(LAST, POLICY, back) == judge(LAST, POLICY, evidence)


def test_pairs_are_made_of_neighbours() -> None:
    ours, theirs = Arm.CANDIDATE, Arm.CHAMPION
    found = paired((), [(theirs, 1.0), (ours, 1.0), (theirs, 0.0), (ours, 0.0), (ours, 0.5), (theirs, 0.0)])
    assert (found.differences, found.waiting) == ((1.0, 0.0), (0.5,))
    later = paired(found.waiting, [(ours, 1.0), (theirs, 1.0), (theirs, 0.0), (theirs, 1.0)])
    assert (later.differences, later.waiting) == ((-0.5, 1.0), ())


def freely(candidate_failed: list[bool], champion_failed: list[bool]) -> FreeRun:
    free = FreeRun()
    for one, other in zip(candidate_failed, champion_failed, strict=True):
        free = free.plus(Ended(one), Ended(other), exact=False)
    return free


def test_a_candidate_that_fails_what_the_champion_answers_is_held_in_the_shadow() -> None:
    shadow = Position(State.SHADOW)
    seen = Evidence(step_units=400, scored=SCORED)
    assert judge(shadow, POLICY, seen).verdict is Verdict.PROMOTE
    few = judge(shadow, POLICY, replace(seen, free=freely([True] * 4, [False] * 4)))
    assert few.verdict is Verdict.PROMOTE, "nothing is proven yet"
    many = judge(shadow, POLICY, replace(seen, free=freely([True] * 12, [False] * 12)))
    assert (many.verdict, reasons(many, Verdict.HOLD), many.jobs_needed) == (Verdict.HOLD, ["free errors"], None)
    assert "failed 12 of 12 jobs" in many.reasons[0].text
    both = judge(shadow, POLICY, replace(seen, free=freely([True] * 50, [True] * 50)))
    better = judge(shadow, POLICY, replace(seen, free=freely([False] * 50, [True] * 50)))
    assert both.verdict is better.verdict is Verdict.PROMOTE
    alone = judge(shadow, POLICY, Evidence(free=freely([False] * 50, [True] * 50)))
    assert alone.verdict is Verdict.HOLD, "and never promotes by itself"
