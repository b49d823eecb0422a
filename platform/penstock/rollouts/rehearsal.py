"""What a policy will cost before a rollout starts: runs of it on jobs that are drawn, without harm and with one.

A run passes shadow and canary as `judge` would have it, looked at after every job. Time passes by jobs alone, so
nothing times out; assignment is right, nothing crashes, and the offline and A/B gates are left out. Failures and slow
jobs are drawn by chance, at one rate each: slow is what of a lognormal latency (sigma 0.5) lies beyond the champion's
quantile once all of it takes longer by the effect. A job's divergence is drawn exponentially around its mean.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np

from penstock.rollouts.policy import Policy, Shadow, Step
from penstock.rollouts.simulation import NEVER, Bools, Integers, first_at, log_mean, mean_path, quantile, ratio_path
from penstock.rollouts.states import Position, State, course
from penstock.rollouts.statistics import FRACTIONS, RATIOS, Floats, log_threshold, mean_factors
from penstock.rollouts.verdicts import Verdict, guardrails

LATENCY_SIGMA: Final = 0.5
_CHUNK: Final = 2_000
_DIFFERENCES: Final = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True, slots=True)
class Effect:
    """What the candidate really is like. Ratios are to the champion's; the other two are means, as in `Shadow`."""

    errors: float = 1.0
    latency: float = 1.0
    mean_kld: float = 0.05
    disagreement: float = 0.05


HARMLESS: Final = Effect()


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs in the order in which they came: who had each, how it went, and in which stratum of latency it was."""

    candidate: Bools
    failed: Bools
    slow: Bools
    stratum: Integers


@dataclass(frozen=True, slots=True)
class Passage:
    """A run's way through one stage: at which job of the run it ended, and how many the candidate had served then.

    `verdict` is hold where the jobs ran out."""

    stage: Position
    verdict: Verdict
    jobs: int
    exposed: int


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """All runs, each the stages that it went through."""

    stages: tuple[Position, ...]
    runs: tuple[tuple[Passage, ...], ...]
    limit: int

    def rate(self, verdict: Verdict) -> float:
        """Part of the runs that ended so: passed everything, were rolled back, or were undecided in the end."""
        return sum(run[-1].verdict is verdict for run in self.runs) / len(self.runs)

    def ends(self, verdict: Verdict, level: float) -> tuple[float, float]:
        """Jobs, and those that the candidate served, within which that part of all runs ended so."""
        ends = [run[-1] if run[-1].verdict is verdict else None for run in self.runs]
        jobs = tuple(NEVER if end is None else float(end.jobs) for end in ends)
        exposed = tuple(NEVER if end is None else float(end.exposed) for end in ends)
        return quantile(jobs, level), quantile(exposed, level)

    def passages(self, stage: Position) -> list[Passage]:
        """Those of the runs that came to the stage."""
        return [passage for run in self.runs for passage in run if passage.stage == stage]

    def lengths(self, stage: Position) -> list[int]:
        """How many jobs each of those spent there."""
        ended = [(0, *(passage.jobs for passage in run)) for run in self.runs]
        return [
            run[at].jobs - before[at]
            for run, before in zip(self.runs, ended, strict=True)
            for at in range(len(run))
            if run[at].stage == stage
        ]


def rehearse(policy: Policy, effect: Effect, *, error_rate: float, limit: int, runs: int, seed: int) -> Rehearsal:
    """So many runs of at most `limit` jobs each, with a champion that fails `error_rate` of its jobs."""
    rng = np.random.default_rng(seed)
    stages = tuple(stage for stage in course(policy) if stage.state in (State.SHADOW, State.CANARY))
    passed = tuple(tuple(_run(policy, effect, stages, error_rate, limit, rng)) for _ in range(runs))
    return Rehearsal(stages, passed, limit)


def _run(
    policy: Policy,
    effect: Effect,
    stages: tuple[Position, ...],
    error_rate: float,
    limit: int,
    rng: np.random.Generator,
) -> Iterator[Passage]:
    jobs, canary = 0, CanaryRun(policy, effect, error_rate, rng)
    for stage in stages:
        if stage.state is State.SHADOW and policy.shadow:
            verdict, spent = _pass_shadow(policy, policy.shadow, effect, limit, rng)
        else:
            verdict, spent = canary.pass_step(policy.canary.steps[stage.step], limit - jobs)
        jobs += spent
        yield Passage(stage, verdict, jobs, canary.exposed)
        if verdict is not Verdict.PROMOTE:
            return


def _pass_shadow(
    policy: Policy, shadow: Shadow, effect: Effect, limit: int, rng: np.random.Generator
) -> tuple[Verdict, int]:
    """Its verdict, and after how many jobs."""
    sampled = 1 + np.flatnonzero(rng.random(limit) < shadow.sampling)
    divergence = np.minimum(rng.exponential(effect.mean_kld, len(sampled)), 1.0)
    disagreement = rng.beta(*_around(effect.disagreement), len(sampled))
    values = ((divergence, shadow.mean_kld), (disagreement, shadow.disagreement))
    harm = [log_mean(mean_path(seen, bound, lower=0.0, above=True)) for seen, bound in values]
    safe = [log_mean(mean_path(seen, bound, lower=0.0, above=False)) for seen, bound in values]
    found = _decide(policy, State.SHADOW, harm, safe, np.arange(1, len(sampled) + 1) >= shadow.minimum_jobs)
    return (Verdict.HOLD, limit) if found is None else (found[0], int(sampled[found[1]]))


def _around(mean: float) -> tuple[float, float]:
    """A beta distribution of that mean, as wide as an exponential one where the mean is small."""
    return 1.0, 1 / mean - 1


def _decide(
    policy: Policy, state: State, harm: list[Floats], safe: list[Floats], enough: Bools
) -> tuple[Verdict, int] | None:
    """The first verdict that is no hold, and where. Harm goes first."""
    rollback = first_at(np.max(harm, axis=0), log_threshold(policy.alphas.rollback, guardrails(policy, state)))
    proven = np.min(safe, axis=0) >= log_threshold(policy.alphas.promotion)
    promote = first_at((proven & enough).astype(float), 1.0)
    found = [(Verdict.ROLLBACK, rollback), (Verdict.PROMOTE, promote)]
    known = [(verdict, at) for verdict, at in found if at is not None]
    return min(known, key=lambda each: each[1]) if known else None


@dataclass(slots=True)
class Rate:
    """The capitals of one guardrail of rates, carried from step to step."""

    tolerated: float
    strata: int
    ratios: Floats
    """[1 + strata, ratios] Log capitals: of all events, and of each stratum's alone."""
    differences: Floats
    """[3] How many pairs of each of `_DIFFERENCES` there were."""

    @classmethod
    def fresh(cls, tolerated: float, strata: int) -> "Rate":
        return cls(tolerated, strata, np.zeros((1 + strata, len(RATIOS))), np.zeros(3))

    def harm(self, jobs: Jobs, events: Bools, share: float) -> Floats:
        """[jobs] Log capital against no harm after each job."""
        where = [events, *(events & (jobs.stratum == stratum) for stratum in range(self.strata))]
        grown = [self._grown(jobs, each, share, start) for each, start in zip(where, self.ratios, strict=True)]
        self.ratios = np.stack([last for _, last in grown])
        together, *alone = [capital for capital, _ in grown]
        if not alone:
            return together
        return np.logaddexp(together, log_mean(np.stack(alone, axis=1))) - math.log(2)

    def _grown(self, jobs: Jobs, events: Bools, share: float, start: Floats) -> tuple[Floats, Floats]:
        """[jobs] Log capital after each job, and [ratios] the bettors' own in the end."""
        ours = jobs.candidate[events]
        path = np.vstack([start, ratio_path(ours, np.full(len(ours), share), self.tolerated, start)])
        return log_mean(path)[np.cumsum(events)], path[-1]

    def safe(self, jobs: Jobs, events: Bools, margin: float) -> Floats:
        """[jobs] Log capital against "worse by the margin" after each job."""
        ours, theirs = partners(jobs.candidate)
        values = events[ours].astype(float) - events[theirs]
        start = self.differences @ mean_factors(_DIFFERENCES, margin, above=False)
        path = np.vstack([start, start + mean_path(values, margin, above=False).reshape(-1, len(FRACTIONS))])
        self.differences = self.differences + [np.count_nonzero(values == value) for value in _DIFFERENCES]
        known_at = np.maximum(ours, theirs)
        return log_mean(path)[np.searchsorted(known_at, np.arange(len(events)), side="right")]


def partners(candidate: Bools) -> tuple[Integers, Integers]:
    """Indices of the candidate's jobs, and of the champion's that each is compared with: the next that is free.

    Candidate's at the end that find none are left out.
    """
    ours, theirs = np.flatnonzero(candidate), np.flatnonzero(~candidate)
    order = np.arange(len(ours))
    slot = order + np.maximum.accumulate(np.searchsorted(theirs, ours) - order) if len(ours) else order
    found = slot < len(theirs)
    return ours[found], theirs[slot[found]]


class CanaryRun:
    """One run's canary: evidence is gathered over all its steps."""

    def __init__(self, policy: Policy, effect: Effect, error_rate: float, rng: np.random.Generator) -> None:
        self.exposed = 0
        self._policy, self._rng = policy, rng
        self._failing = (error_rate, min(error_rate * effect.errors, 1.0))
        self.errors = Rate.fresh(policy.errors.tolerated_ratio, 0)
        latency = policy.latency
        self._latency = Rate.fresh(latency.tolerated_ratio, len(latency.strata)) if latency else None
        self._slow = slow_rates(latency.quantile, effect.latency) if latency else (0.0, 0.0)

    def pass_step(self, step: Step, limit: int) -> tuple[Verdict, int]:
        """The verdict, and after how many jobs."""
        spent, units = 0, 0
        while spent < limit:
            jobs = self._draw(step.share, min(_CHUNK, limit - spent))
            served = units + np.cumsum(jobs.candidate)
            found = self._judge(step, jobs, served)
            took = len(served) if found is None else found[1] + 1
            spent, self.exposed = spent + took, self.exposed + int(served[took - 1]) - units
            units = int(served[took - 1])
            if found is not None:
                return found[0], spent
        return Verdict.HOLD, limit

    def _draw(self, share: float, count: int) -> Jobs:
        candidate = self._rng.random(count) < share
        failed = self._rng.random(count) < np.where(candidate, self._failing[1], self._failing[0])
        slow = self._rng.random(count) < np.where(candidate, self._slow[1], self._slow[0])
        strata = self._latency.strata if self._latency else 1
        return Jobs(candidate, failed, slow, self._rng.integers(strata, size=count))

    def _judge(self, step: Step, jobs: Jobs, served: Integers) -> tuple[Verdict, int] | None:
        before = replace(self.errors), self._latency and replace(self._latency)
        found = self.first_verdict(step, jobs, served)
        if found is not None and found[0] is Verdict.PROMOTE and found[1] + 1 < len(served):
            # The jobs after the verdict are not run at this share: take the evidence of those before it alone.
            self.errors, self._latency = before
            self.first_verdict(step, _first(jobs, found[1] + 1), served[: found[1] + 1])
        return found

    def first_verdict(self, step: Step, jobs: Jobs, served: Integers) -> tuple[Verdict, int] | None:
        """The first after one of these jobs that is no hold, and the job's index; `served` are those of the candidate
        in this step so far. All of them are evidence from now on."""
        harm = [self.errors.harm(jobs, jobs.failed, step.share)]
        safe = [self.errors.safe(jobs, jobs.failed, step.error_margin)]
        if self._latency:
            harm.append(self._latency.harm(jobs, jobs.slow, step.share))
            safe.append(self._latency.safe(jobs, jobs.slow, step.slow_margin))
        return _decide(self._policy, State.CANARY, harm, safe, served >= step.minimum_jobs)


def _first(jobs: Jobs, count: int) -> Jobs:
    return Jobs(jobs.candidate[:count], jobs.failed[:count], jobs.slow[:count], jobs.stratum[:count])


def slow_rates(level: float, longer: float) -> tuple[float, float]:
    """Part of the champion's, and of the candidate's, jobs beyond the champion's quantile of that level."""
    normal = NormalDist()
    beyond = normal.inv_cdf(level) - math.log(longer) / LATENCY_SIGMA
    return 1 - level, 1 - normal.cdf(beyond)
