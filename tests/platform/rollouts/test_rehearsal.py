"""Rehearsed rollouts: the same verdicts as `judge` gives, and figures that show what harm does."""

import numpy as np
import pytest
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.rehearsal import (
    HARMLESS,
    CanaryRun,
    Effect,
    Jobs,
    Rehearsal,
    partners,
    rehearse,
    slow_rates,
)
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.verdicts import Verdict, judge

POLICY = Policy()


def drawn(rng: np.random.Generator, share: float, count: int, failing: float, slow: float) -> Jobs:
    candidate = rng.random(count) < share
    failed = rng.random(count) < np.where(candidate, failing, 0.02)
    late = rng.random(count) < np.where(candidate, slow, 0.05)
    return Jobs(candidate, failed, late, rng.integers(3, size=count))


def told(before: Evidence, jobs: Jobs, share: float, count: int) -> Evidence:
    """What the first so many jobs add to the evidence, counted one by one."""
    assert POLICY.latency
    failures, slow, units = before.failures, dict(before.slow), before.units
    for at in range(count):
        arm = {"candidate": int(jobs.candidate[at]), "champion": int(not jobs.candidate[at])}
        units = units.plus(share, **arm)
        failures = failures.plus(share, **arm) if jobs.failed[at] else failures
        if jobs.slow[at]:
            stratum = POLICY.latency.strata[jobs.stratum[at]]
            slow[stratum] = slow.get(stratum, Tally()).plus(share, **arm)
    pairs = dict(before.pairs)
    for ours, theirs in zip(*partners(jobs.candidate), strict=True):
        if max(ours, theirs) < count:
            for name, seen in (("errors", jobs.failed), ("slow", jobs.slow)):
                pairs[name] = pairs.get(name, Sample()).plus(float(seen[ours]) - float(seen[theirs]))
    served = int(np.count_nonzero(jobs.candidate[:count]))
    return Evidence(step_units=served, units=units, failures=failures, slow=slow, pairs=pairs)


@pytest.mark.parametrize(
    ("failing", "slow", "last"),
    [(0.02, 0.05, Verdict.PROMOTE), (0.3, 0.05, Verdict.ROLLBACK), (0.02, 0.15, Verdict.ROLLBACK)],
)
def test_a_rehearsal_is_judged_as_a_rollout_is(failing: float, slow: float, last: Verdict) -> None:
    rng = np.random.default_rng(6)
    run, evidence, verdicts = CanaryRun(POLICY, HARMLESS, 0.02, rng), Evidence(), []
    for at, step in enumerate(POLICY.canary.steps[1:], start=1):
        position, jobs = Position(State.CANARY, at), drawn(rng, step.share, 4000, failing, slow)
        found = run.first_verdict(step, jobs, np.cumsum(jobs.candidate))
        assert found is not None
        verdict, index = found
        for count in (index // 2, index):
            assert judge(position, POLICY, told(evidence, jobs, step.share, count)).verdict is Verdict.HOLD
        assert judge(position, POLICY, told(evidence, jobs, step.share, index + 1)).verdict is verdict
        evidence = told(evidence, jobs, step.share, 4000)
        verdicts.append(verdict)
        if verdict is Verdict.ROLLBACK:
            break
    assert verdicts[-1] is last


def test_a_verdict_rests_on_the_jobs_before_it_alone() -> None:
    """Jobs are drawn by the thousand; those after a promotion are not run, and are no evidence of the next step."""
    run = CanaryRun(POLICY, HARMLESS, 0.01, np.random.default_rng(1))
    verdict, jobs = run.pass_step(POLICY.canary.steps[3], 20_000)
    assert (verdict, jobs % 2000 > 0) == (Verdict.PROMOTE, True)
    assert 0.9 * run.exposed < run.errors.differences.sum() <= run.exposed < jobs


def test_partners_are_the_next_that_are_free() -> None:
    candidate = np.array([0, 1, 1, 0, 0, 1, 0, 1, 0, 1], dtype=bool)
    ours, theirs = partners(candidate)
    assert list(zip(ours.tolist(), theirs.tolist(), strict=True)) == [(1, 3), (2, 4), (5, 6), (7, 8)]
    assert [len(side) for side in partners(np.zeros(5, dtype=bool))] == [0, 0]
    assert [len(side) for side in partners(np.ones(5, dtype=bool))] == [0, 0]


def run(effect: Effect, policy: Policy = POLICY, runs: int = 60, limit: int = 20_000) -> Rehearsal:
    return rehearse(policy, effect, error_rate=0.01, limit=limit, runs=runs, seed=3)


@pytest.fixture(scope="module")
def harmless() -> Rehearsal:
    return run(HARMLESS)


def test_what_is_harmless_passes(harmless: Rehearsal) -> None:
    assert harmless.rate(Verdict.ROLLBACK) <= 0.1
    assert harmless.rate(Verdict.PROMOTE) > 0.9
    assert harmless.ends(Verdict.PROMOTE, 0.5)[0] < 15_000


def test_a_run_is_the_sum_of_its_stages(harmless: Rehearsal) -> None:
    assert [stage.title for stage in harmless.stages][:2] == ["shadow", "canary step 1"]
    assert len(harmless.passages(harmless.stages[0])) == 60
    lengths = [harmless.lengths(stage) for stage in harmless.stages]
    assert sum(map(sum, lengths)) == sum(passages[-1].jobs for passages in harmless.runs)
    for passages in harmless.runs:
        assert [passage.jobs for passage in passages] == sorted(passage.jobs for passage in passages)
        assert all(passage.exposed <= passage.jobs for passage in passages)
        assert passages[0].exposed == 0, "a shadow serves nobody"
        assert all(passage.verdict is Verdict.PROMOTE for passage in passages[:-1])


def test_ten_times_the_errors_cost_few_jobs() -> None:
    rehearsal = run(Effect(errors=10))
    assert rehearsal.rate(Verdict.ROLLBACK) == 1.0
    assert 3 < rehearsal.ends(Verdict.ROLLBACK, 0.5)[1] < 60


def test_longer_latency_is_harm_too() -> None:
    assert run(Effect(latency=1.5), runs=20).rate(Verdict.ROLLBACK) == 1.0
    blind = read_policy("{latency: null, shadow: null}")
    assert run(Effect(latency=1.5), blind, runs=20).rate(Verdict.ROLLBACK) < 0.3


@pytest.mark.parametrize("effect", [Effect(mean_kld=0.5), Effect(disagreement=0.4)])
def test_a_candidate_that_answers_differently_never_serves(effect: Effect) -> None:
    rehearsal = run(effect, runs=20)
    assert rehearsal.rate(Verdict.ROLLBACK) == 1.0
    assert rehearsal.ends(Verdict.ROLLBACK, 1.0)[1] == 0
    assert rehearsal.passages(rehearsal.stages[1]) == []


def test_what_is_not_decided_when_jobs_run_out_is_held() -> None:
    rehearsal = run(HARMLESS, runs=5, limit=3000)
    assert rehearsal.rate(Verdict.HOLD) == 1.0
    assert {passages[-1].jobs for passages in rehearsal.runs} == {3000}


def test_longer_latency_puts_more_jobs_beyond_the_quantile() -> None:
    assert slow_rates(0.95, 1.0) == pytest.approx((0.05, 0.05))
    assert slow_rates(0.95, 1.5)[1] == pytest.approx(0.2024, abs=1e-3)
