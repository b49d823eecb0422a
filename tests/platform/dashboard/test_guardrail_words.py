"""What judgements say in words: of every reason that a gate gives, made by the judge itself."""

from dataclasses import replace
from typing import Any

import pytest
from penstock.dashboard.gate_page import GatePage, gate_page, why_it_ended
from penstock.dashboard.guardrail_words import between, figure, lasting, percent, points
from penstock.rollouts.evidence import Comparison, Evidence, OfflineFigures
from penstock.rollouts.free_running import Ended, FreeRun
from penstock.rollouts.ledger import JUDGEMENT
from penstock.rollouts.policy import AB, Latency, Offline, Policy
from penstock.rollouts.presentation import evidence_document
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.verdicts import judge

CANARY = Position(State.CANARY, 1)
POLICY = Policy(ab=AB(), offline=Offline(memory_ratio=0.5, speed_ratio=0.9))
FIGURES = OfflineFigures(
    bits=4.0,
    tokens=61_440,
    candidate=Comparison(0.0287, 0.9462, 0.0112, 0.0215),
    noise=Comparison(0.0001, 0.9991, 0.0001, 0.002),
    answers=512,
    ratios={"memory": 0.337, "speed": 1.43},
)
ALIKE = Sample(((-1000, 4), (0, 101), (1000, 4)))


def gate_of(position: Position, evidence: Evidence, policy: Policy = POLICY) -> dict[str, Any]:
    """The gate's document, judged on that evidence."""
    return {
        "status": position.state.value, "step": position.step, "title": position.title, "judged_at": "now",
        "judgement": JUDGEMENT.dump_python(judge(position, policy, evidence), mode="json"),
        "evidence": evidence_document(evidence, policy), "history": [],
    }  # fmt: skip


def page(position: Position, evidence: Evidence, policy: Policy = POLICY) -> GatePage:
    """The gate as its page would show it."""
    gates = [gate_of(position, evidence, policy)]
    found = gate_page({"policy": policy.model_dump(mode="json"), "gates": gates})
    assert found is not None
    return found


def said(position: Position, evidence: Evidence, policy: Policy = POLICY) -> dict[str, str]:
    return {line.title: line.why for line in page(position, evidence, policy).guards}


def canary(**more: Any) -> Evidence:
    seen = Tally().plus(0.05, 110, 2_090)
    return Evidence(step_units=110, units=seen, pairs={"errors": ALIKE, "slow": ALIKE}, **more)


def test_intervals_are_told_in_points_beside_their_margin() -> None:
    told = said(CANARY, canary())
    assert told["Failures"] == (
        "The candidate fails between 9.8 points less and 12 points more often than the champion (109 pairs of jobs); "
        "it must be proven to be under 10 points more."
    )
    assert told["Slow jobs"].endswith("Slow is what takes longer than 95 % of the champion's jobs.")
    assert told["Enough seen"] == "110 jobs of the candidate were seen; 20 are wanted at least."
    first = said(replace(CANARY, step=0), canary())
    assert first["Failures"].endswith("(109 pairs of jobs); up to 25 points more are allowed.")


def test_a_rollout_ended_for_what_its_last_gate_proved() -> None:
    shadow = gate_of(Position(State.SHADOW), Evidence())
    harmed = gate_of(CANARY, canary(failures=Tally().plus(0.05, 9, 21)))
    rollout = {"policy": POLICY.model_dump(mode="json"), "gates": [shadow, harmed]}
    assert str(why_it_ended(rollout)).startswith("9 of the 30 failures are the candidate's")
    assert why_it_ended(rollout | {"gates": [shadow]}) is None
    assert why_it_ended(rollout | {"gates": []}) is None


def test_harm_is_told_by_whose_events_they_were() -> None:
    failures, slow = Tally().plus(0.05, 9, 21), {"<512": Tally().plus(0.05, 31, 70)}
    told = said(CANARY, canary(failures=failures, slow=slow))
    assert told["Failures"] == (
        "9 of the 30 failures are the candidate's, which served 5 % of the jobs: more than chance explains."
    )
    assert told["Slow jobs"].startswith("31 of the 101 slow jobs are the candidate's")


def test_the_shadows_figures_have_their_units() -> None:
    few = {"mean_kld": Sample(((30, 90), (80, 52)), 0.0), "disagreement": Sample(((20, 90), (60, 52)), 0.0)}
    told = said(Position(State.SHADOW), Evidence(scored=few, lost=2))
    assert (
        told["Divergence"]
        == "Answers diverge by 0.043 to 0.096 nats in the mean (142 jobs); up to 0.2 nats are allowed."
    )
    assert told["Other choices"].startswith("At 3 to 8.3 % of an answer's tokens the candidate would have chosen")
    harmful = {name: Sample(((700, 90),), 0.0) for name in few}
    told = said(Position(State.SHADOW), Evidence(scored=harmful, lost=90))
    assert told["Divergence"] == (
        "Answers diverge by 0.7 nats in the mean (90 jobs), beyond doubt more than the 0.2 nats that are allowed."
    )
    assert told["Other choices"].startswith("At 70 % of an answer's tokens the candidate would have chosen another")
    assert told["Not scored"] == "90 of 180 sampled answers could not be scored, and they may be the worst."
    assert told["Enough seen"] == "90 answers were scored; 100 are wanted at least."


def test_answers_of_its_own_that_fail_are_told_beside_the_champions() -> None:
    free = FreeRun()
    for _ in range(40):
        free = free.plus(Ended(failed=True), Ended(failed=False), exact=False)
    told = said(Position(State.SHADOW), Evidence(free=free))
    assert told["Its own answers"].startswith(
        "Of 40 requests that both answered, the candidate failed 40 and the champion 0:"
    )


def test_limits_of_the_held_out_set_are_told_with_what_noise_there_is() -> None:
    offline = Position(State.OFFLINE)
    told = said(offline, Evidence(offline=FIGURES))
    assert told["Divergence"] == (
        "What the versions expect next diverges by 0.029 nats a token. The limit is at most 0.05 nats. "
        "The reference beside itself: 0.0001 nats."
    )
    assert told["Same choices"].startswith("Both would choose the same token at 94.6 % of the positions. The limit is")
    assert told["Perplexity"].startswith(
        "The text is 1.1 % more perplexing to the candidate. The limit is at most 3 %."
    )
    assert told["Flips"].startswith("2.1 % of the answers changed between right and wrong.")
    assert told["Memory"] == "The weights take 34 % of the reference's memory. The limit is at most 50 %."
    assert told["Speed"] == "It reads 1.4 times as fast as the reference. The limit is at least 0.9 times."
    noisy = replace(FIGURES, noise=Comparison(mean_kld=0.3), tokens=800, answers=0, candidate=Comparison(0.02, 0.95))
    told = said(offline, Evidence(offline=noisy))
    assert "nothing can be told" in told["Divergence"]
    assert told["Perplexity"] == "Perplexity_increase was not measured."
    assert told["Flips"] == "Flips: the data asks no question whose answer is known."
    assert told["Enough text"] == "800 tokens were compared; 10,000 are wanted at least."
    assert said(offline, Evidence()) == {"Evaluation": "The candidate was not compared yet."}
    faster = replace(FIGURES, candidate=replace(FIGURES.candidate, perplexity_increase=-0.004))
    assert "0.4 % less perplexing" in said(offline, Evidence(offline=faster))["Perplexity"]


def test_feedback_and_what_it_weighs_are_told() -> None:
    both = {"errors": ALIKE, "slow": ALIKE, "feedback": Sample(((-200, 60), (300, 60)))}
    judged = Tally().plus(0.5, 300, 90)
    seen = Evidence(units=Tally().plus(0.5, 400, 400), pairs=both, judged=judged, trades=((300, 2000, 400),))
    told = said(Position(State.AB), seen, Policy(ab=AB(cost=0.12)))
    assert told["Feedback"].startswith("Scores, less what devices cost, are between")
    assert "points of score a device-second the verdict would be another." in told["Feedback"]
    assert told["Who gives feedback"].startswith("300 of the 390 users that gave feedback are the candidate's")
    assert told["Enough seen"] == "400 users of the candidate gave feedback; 200 are wanted at least."
    plain = Policy(ab=AB())
    worse = replace(seen, pairs=both | {"feedback": Sample(((400, 300),))})
    assert said(Position(State.AB), worse, plain)["Feedback"].startswith(
        "Scores are 40 points lower than the champion's"
    )


def test_conditions_say_what_happens() -> None:
    lopsided = replace(canary(crashes=4, seconds=2 * 86400.0), units=Tally().plus(0.05, 600, 2_000))
    told = said(CANARY, lopsided)
    assert told["Planned shares"] == (
        "600 of 2,600 jobs are the candidate's where 5 % were planned: some are lost, or went astray, and nothing can "
        "be compared."
    )
    assert told["Crashes"] == "The candidate's engine crashed 4 times; the policy stops at 3."
    told = said(CANARY, canary(seconds=2 * 86400.0))
    assert told["Time"] == "Nothing was proven within 24 hours, so it is for an operator to decide."


def test_a_policy_without_latency_has_no_slow_jobs() -> None:
    assert "Slow jobs" not in said(CANARY, canary(), Policy(latency=None))
    assert "longer than 99 %" in said(CANARY, canary(), Policy(latency=Latency(quantile=0.99)))["Slow jobs"]


def test_bars_keep_the_interval_and_its_margin_in_sight() -> None:
    lines = {line.title: line.bar for line in page(CANARY, canary()).guards}
    bar = lines["Failures"]
    assert bar is not None
    assert bar.zero is not None
    assert 0 < bar.start < bar.zero < bar.mark < bar.end < 100
    assert lines["Enough seen"] is None
    limits = {line.title: line.bar for line in page(Position(State.OFFLINE), Evidence(offline=FIGURES)).guards}
    agreement = limits["Same choices"]
    assert agreement is not None
    assert agreement.start < agreement.end < agreement.mark < 100


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (figure(0.0423), "0.042"), (figure(4.95), "5"), (figure(12.4), "12"), (points(-0.01), "1 point"),
        (percent(0.9991), "99.91 %"), (percent(1.0), "100 %"), (percent(0.0), "0 %"), (lasting(45), "45 seconds"),
        (lasting(86400), "24 hours"), (lasting(14 * 86400), "14 days"), (lasting(1800), "30 minutes"),
        (between(0.01, 0.02, "less", "more"), "between 1 and 2 points more"),
        (between(-0.02, -0.01, "less", "more"), "between 1 and 2 points less"),
    ],
)  # fmt: skip
def test_figures_are_short_and_have_units(told: str, wanted: str) -> None:
    assert told == wanted
