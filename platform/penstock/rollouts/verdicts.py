"""From what a gate has seen to its verdict: promote on proven non-inferiority, roll back on proven harm, else hold.

Pure: the same policy, position and evidence give the same judgement, whenever it is asked for and however often.

Any one guardrail may roll back, so each of m has `alphas.rollback / m` to be wrong with. All together must pass to
promote, so each may be wrong with the whole of `alphas.promotion`: the chance that all are is no larger (an
intersection-union test, Berger 1982).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np

from penstock.rollouts.evidence import Evidence, OfflineFigures
from penstock.rollouts.free_running import FreeRun
from penstock.rollouts.policy import AB, Offline, OnTimeout, Policy, Shadow, Step
from penstock.rollouts.states import Position, State
from penstock.rollouts.statistics import (
    Sample,
    Tally,
    log_mean_evidence,
    log_ratio_evidence,
    log_sample_ratio_evidence,
    log_stratified_evidence,
    log_threshold,
    mean_capitals,
    mean_interval,
)
from penstock.rollouts.worth import turning_costs, weighed


class Verdict(StrEnum):
    """What a gate says."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Reason:
    """One guardrail's, or condition's, part in a judgement. `jobs_needed` is none where no number would do."""

    name: str
    verdict: Verdict
    text: str
    figures: dict[str, float] = field(default_factory=dict)
    jobs_needed: int | None = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, and all reasons, those that decided it first.

    `jobs_needed`, of a hold, is how many more jobs (of both arms, in a canary) would end it if everything went on as
    until now; none where they would not.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    jobs_needed: int | None = 0


@dataclass(frozen=True, slots=True)
class _Gate:
    """What the gates that see jobs have in common."""

    guards: tuple[Reason, ...]
    minimum: int
    seen: int
    rate: float
    """Which part of all jobs gives the candidate a unit."""
    timeout: int
    on_timeout: OnTimeout


_FEW, _LOST_PART = 5, 0.1
_ORDER: Final = (Verdict.ROLLBACK, Verdict.HOLD, Verdict.PROMOTE)


def judge(position: Position, policy: Policy, evidence: Evidence) -> Judgement:
    """The judgement of the gate at `position`. Raises `ValueError` where there is none."""
    if position.state is State.OFFLINE and policy.offline:
        return _conclude(_offline_reasons(policy.offline, evidence))
    if position.state is State.SHADOW and policy.shadow:
        return _conclude(_live_reasons(_shadow(policy, policy.shadow, evidence), policy, evidence))
    if position.state is State.CANARY:
        gate = _canary(policy, policy.canary.steps[position.step], evidence)
        return _conclude(_live_reasons(gate, policy, evidence))
    if position.state is State.AB and policy.ab:
        return _conclude(_live_reasons(_ab(policy, policy.ab, evidence), policy, evidence))
    raise ValueError(f"there is no gate where a rollout is {position.state} under this policy")


def guardrails(policy: Policy, state: State) -> int:
    """How many may roll back in this stage, which share `alphas.rollback`."""
    if state is State.SHADOW:
        return 2
    return 1 + bool(policy.latency) + (state is State.AB)


def _conclude(reasons: list[Reason]) -> Judgement:
    ordered = sorted(reasons, key=lambda reason: _ORDER.index(reason.verdict))
    verdict = _worst(reasons)
    if verdict is not Verdict.HOLD:
        return Judgement(verdict, tuple(ordered))
    needs = [reason.jobs_needed for reason in ordered]
    needed = None if None in needs else max(need for need in needs if need is not None)
    return Judgement(verdict, tuple(ordered), needed)


def _worst(reasons: list[Reason]) -> Verdict:
    return min((reason.verdict for reason in reasons), key=_ORDER.index)


def _live_reasons(gate: _Gate, policy: Policy, evidence: Evidence) -> list[Reason]:
    reasons = [*gate.guards, _minimum(gate)]
    if evidence.crashes >= policy.breaker.crashes:
        reasons.append(Reason("breaker", Verdict.ROLLBACK, f"the candidate's engine crashed {evidence.crashes} times"))
    for name, tally in (("sample ratio", evidence.units), ("sample ratio of feedback", evidence.judged)):
        reasons += _sample_ratio(name, tally, policy.alphas.sample_ratio)
    if _worst(reasons) is Verdict.HOLD and evidence.seconds >= gate.timeout:
        reasons.append(_timeout(gate))
    return reasons


def _minimum(gate: _Gate) -> Reason:
    missing = max(gate.minimum - gate.seen, 0)
    text = f"{gate.seen} of the {gate.minimum} units of the candidate that the policy wants"
    verdict = Verdict.HOLD if missing else Verdict.PROMOTE
    return Reason("minimum", verdict, text, {"units": gate.seen, "minimum": gate.minimum}, _jobs(missing, gate.rate))


def _sample_ratio(name: str, tally: Tally, alpha: float) -> Iterator[Reason]:
    capital, threshold = log_sample_ratio_evidence(tally), log_threshold(alpha)
    if capital >= threshold:
        text = f"{tally.candidate} units of {tally.total} are the candidate's, which its shares do not explain: "
        text += "units are lost, or assigned wrongly, and no comparison can be relied upon"
        yield Reason(name, Verdict.HOLD, text, {"log_evidence": capital, "threshold": threshold}, None)


def _timeout(gate: _Gate) -> Reason:
    if gate.on_timeout is OnTimeout.ROLLBACK:
        return Reason("timeout", Verdict.ROLLBACK, f"nothing was proven within {gate.timeout} seconds")
    text = f"nothing was proven within {gate.timeout} seconds; the policy leaves it to an operator"
    return Reason("timeout", Verdict.HOLD, text)


def _shadow(policy: Policy, shadow: Shadow, evidence: Evidence) -> _Gate:
    bounds = {"mean_kld": shadow.mean_kld, "disagreement": shadow.disagreement}
    samples = {name: evidence.scored.get(name, Sample(lower=0.0)) for name in bounds}
    guards = tuple(
        _mean_guard(name, samples[name], bound, policy, State.SHADOW, shadow.sampling) for name, bound in bounds.items()
    )
    seen = min(sample.size for sample in samples.values())
    guards += _too_many_lost(evidence.lost, seen) + _failing_freely(policy, evidence.free)
    return _Gate(guards, shadow.minimum_jobs, seen, shadow.sampling, shadow.timeout, shadow.on_timeout)


def _too_many_lost(lost: int, scored: int) -> tuple[Reason, ...]:
    """What cannot be scored may be what is worst: beyond a tenth nothing is promoted."""
    if lost < _FEW or lost <= _LOST_PART * (lost + scored):
        return ()
    text = f"{lost} of {lost + scored} sampled answers could not be scored; their comparisons say why"
    return (Reason("lost", Verdict.HOLD, text, {"lost": lost, "scored": scored}, None),)


def _failing_freely(policy: Policy, free: FreeRun) -> tuple[Reason, ...]:
    """A version that is proven to fail more of the same requests goes to no user by itself.

    It holds only: a shadow's answers are made at the lowest class, on the crowd's leavings, and the canary's are not.
    """
    capital, threshold = log_mean_evidence(free.errors, 0.0, above=True), log_threshold(policy.alphas.rollback)
    if capital < threshold:
        return ()
    text = f"the candidate failed {free.candidate.failures} of {free.jobs} jobs that it answered by itself, "
    text += f"and the champion {free.champion.failures} of the same"
    figures = {"log_evidence": capital, "threshold": threshold, "units": free.jobs}
    return (Reason("free errors", Verdict.HOLD, text, figures, None),)


def _canary(policy: Policy, step: Step, evidence: Evidence) -> _Gate:
    guards = _rate_guards(policy, State.CANARY, step, step.share, evidence)
    return _Gate(guards, step.minimum_jobs, evidence.step_units, step.share, step.timeout, step.on_timeout)


def _ab(policy: Policy, ab: AB, evidence: Evidence) -> _Gate:
    """Errors and latency are held to what the canary's last step wanted."""
    rates = _rate_guards(policy, State.AB, policy.canary.steps[-1], ab.share, evidence)
    sample = weighed(evidence.trades, ab.cost) if ab.cost else evidence.pairs.get("feedback", Sample())
    # Of all jobs few are judged: how many is seen as it goes on.
    rate = sample.size / evidence.units.total if sample.size and evidence.units.total else ab.share
    feedback = _mean_guard("feedback", sample, ab.feedback_margin, policy, State.AB, rate)
    turns = turning_costs(evidence.trades, ab.cost, lambda cost: _verdict_at(cost, policy, ab, evidence))
    feedback = replace(feedback, figures=feedback.figures | {f"turns_{side}": cost for side, cost in turns.items()})
    return _Gate((*rates, feedback), ab.minimum_jobs, sample.size, rate, ab.timeout, ab.on_timeout)


def _verdict_at(cost: float, policy: Policy, ab: AB, evidence: Evidence) -> Verdict:
    """Feedback's verdict if a second of a device were worth so many points."""
    sample = weighed(evidence.trades, cost)
    if log_mean_evidence(sample, ab.feedback_margin, above=True) >= _rollback_threshold(policy, State.AB):
        return Verdict.ROLLBACK
    proven = log_mean_evidence(sample, ab.feedback_margin, above=False) >= log_threshold(policy.alphas.promotion)
    return Verdict.PROMOTE if proven else Verdict.HOLD


def _rollback_threshold(policy: Policy, state: State) -> float:
    return log_threshold(policy.alphas.rollback, guardrails(policy, state))


def _rate_guards(policy: Policy, state: State, step: Step, share: float, evidence: Evidence) -> tuple[Reason, ...]:
    threshold = _rollback_threshold(policy, state)
    harm = log_ratio_evidence(evidence.failures, tolerated=policy.errors.tolerated_ratio)
    errors = _harmful("errors", harm, threshold, evidence.failures)
    pairs = evidence.pairs.get("errors", Sample())
    errors = errors or _no_worse("errors", pairs, step.error_margin, policy, share)
    if policy.latency is None:
        return (errors,)
    slow = {stratum: evidence.slow.get(stratum, Tally()) for stratum in policy.latency.strata}
    harm = log_stratified_evidence(slow, tolerated=policy.latency.tolerated_ratio)
    latency = _harmful("latency", harm, threshold, sum(slow.values(), Tally()))
    pairs = evidence.pairs.get("slow", Sample())
    return errors, latency or _no_worse("latency", pairs, step.slow_margin, policy, share)


def _harmful(name: str, capital: float, threshold: float, events: Tally) -> Reason | None:
    """Harm is told by the ratio of rates, which is quick; harmlessness by their difference, which says how much."""
    if capital < threshold:
        return None
    text = f"{name}: {events.candidate} of {events.total} are the candidate's, more than its share explains"
    return Reason(name, Verdict.ROLLBACK, text, {"log_evidence": capital, "threshold": threshold})


def _mean_guard(name: str, sample: Sample, bound: float, policy: Policy, state: State, rate: float) -> Reason:
    capital = log_mean_evidence(sample, bound, above=True)
    threshold = _rollback_threshold(policy, state)
    if capital >= threshold:
        text = f"{name}: the mean {sample.mean:.4f} is above {bound:g} beyond doubt"
        return Reason(name, Verdict.ROLLBACK, text, {"log_evidence": capital, "threshold": threshold})
    return _no_worse(name, sample, bound, policy, rate)


def _no_worse(name: str, sample: Sample, margin: float, policy: Policy, rate: float) -> Reason:
    capital, threshold = log_mean_evidence(sample, margin, above=False), log_threshold(policy.alphas.promotion)
    interval = mean_interval(sample, alpha_low=policy.alphas.rollback, alpha_high=policy.alphas.promotion)
    figures = {"log_evidence": capital, "threshold": threshold, "margin": margin, "units": sample.size}
    figures |= {"low": interval.low, "high": interval.high}
    where = f"between {interval.low:.4f} and {interval.high:.4f} after {sample.size}"
    if capital >= threshold:
        return Reason(name, Verdict.PROMOTE, f"{name}: {where}, below {margin:g}", figures)
    needed = _jobs(units_needed(sample, margin, policy.alphas.promotion), rate)
    return Reason(name, Verdict.HOLD, f"{name}: {where}, not yet below {margin:g}", figures, needed)


def units_needed(sample: Sample, margin: float, alpha: float) -> int | None:
    """How many more units would prove the mean below `margin`, if capital went on growing as until now.

    One unit without any difference is added to what was seen, so that there is an answer at the beginning: the least
    that it could take. None where no bettor's capital grows.
    """
    seen = sample.plus(0.0)
    capitals = mean_capitals(seen, margin, above=False)
    missing = log_threshold(alpha) + math.log(len(capitals)) - capitals
    growing = capitals > 0
    if not np.any(growing):
        return None
    return max(math.ceil(np.min(missing[growing] / capitals[growing]) * seen.size), 1)


def _jobs(units: int | None, rate: float) -> int | None:
    return None if units is None else math.ceil(units / rate)


def _offline_reasons(gate: Offline, evidence: Evidence) -> list[Reason]:
    figures = evidence.offline
    if figures is None:
        text = evidence.trouble or "the candidate was not compared yet"
        return [Reason("offline", Verdict.HOLD, text, jobs_needed=None)]
    reasons = [_limit(name, gate, figures) for name in ("mean_kld", "same_top", "perplexity_increase")]
    reasons.append(_no_questions() if figures.answers == 0 else _limit("flips", gate, figures))
    bounds = {"memory": gate.memory_ratio, "speed": gate.speed_ratio}
    reasons += [_ratio(name, bound, figures.ratios.get(name)) for name, bound in bounds.items() if bound is not None]
    if figures.tokens < gate.minimum_tokens:
        text = f"{figures.tokens} tokens were compared, and the policy wants {gate.minimum_tokens}"
        reasons.append(Reason("tokens", Verdict.HOLD, text, jobs_needed=None))
    return reasons


def _no_questions() -> Reason:
    """Text alone has no right answer; the other limits are what it is judged by."""
    return Reason("flips", Verdict.PROMOTE, "flips: the data asks no question whose answer is known")


def _ratio(name: str, bound: float, value: float | None) -> Reason:
    """The most memory, or the least speed, relative to the reference's."""
    if value is None:
        return Reason(name, Verdict.HOLD, f"{name} was not measured", jobs_needed=None)
    kept = value <= bound if name == "memory" else value >= bound
    text = f"{name} is {value:.3g} of the reference's, {'within' if kept else 'beyond'} the limit of {bound:g}"
    return Reason(name, Verdict.PROMOTE if kept else Verdict.ROLLBACK, text, {"value": value, "limit": bound})


def _limit(name: str, gate: Offline, figures: OfflineFigures) -> Reason:
    """Agreement is compared as disagreement, so that less is better everywhere."""
    limit, value, noise = (getattr(of, name) for of in (gate.limits(figures.bits), figures.candidate, figures.noise))
    if value is None:
        return Reason(name, Verdict.HOLD, f"{name} was not measured", jobs_needed=None)
    told = {"value": value, "limit": limit} | ({} if noise is None else {"noise": noise})
    if name == "same_top":
        limit, value, noise = 1 - limit, 1 - value, None if noise is None else 1 - noise
    if noise is not None and noise > limit:
        text = f"{name}: the reference against itself is beyond the limit; measure on more tokens, or without noise"
        return Reason(name, Verdict.HOLD, text, told, None)
    kept = value <= limit
    text = f"{name} is {told['value']:g}, {'within' if kept else 'beyond'} the limit of {told['limit']:g}"
    return Reason(name, Verdict.PROMOTE if kept else Verdict.ROLLBACK, text, told)
