"""A rehearsal's figures, as `SimulationDocument`."""

import math
from dataclasses import asdict
from typing import Any

from penstock.rollouts.policy import Policy
from penstock.rollouts.rehearsal import HARMLESS, Effect, Rehearsal, rehearse
from penstock.rollouts.schemas import SimulationRequest
from penstock.rollouts.states import Position
from penstock.rollouts.verdicts import Verdict


def rehearsed(policy: Policy, asked: SimulationRequest) -> dict[str, Any]:
    """Rehearse both kinds of candidate. The same request has the same answer."""

    def of(effect: Effect) -> dict[str, Any]:
        found = rehearse(
            policy,
            effect,
            error_rate=asked.champion_error,
            limit=asked.jobs,
            runs=asked.runs,
            seed=asked.seed,
        )
        return _document(effect, found)

    return {
        "object": "rollout_simulation",
        "policy_version": policy.version,
        "runs": asked.runs,
        "jobs": asked.jobs,
        "champion_error": asked.champion_error,
        "seed": asked.seed,
        "harmless": of(HARMLESS),
        "harmful": of(asked.effect.effect),
    }


def _document(effect: Effect, found: Rehearsal) -> dict[str, Any]:
    return {
        "effect": asdict(effect),
        "passed": _end(found, Verdict.PROMOTE),
        "rolled_back": _end(found, Verdict.ROLLBACK),
        "undecided": found.rate(Verdict.HOLD),
        "stages": [_stage(found, stage) for stage in found.stages],
    }


def _end(found: Rehearsal, verdict: Verdict) -> dict[str, float | None]:
    rate = found.rate(verdict)
    (median, served), (most, served_most) = (found.ends(verdict, level * rate) for level in (0.5, 0.9))
    told = {"jobs_median": median, "served_median": served, "jobs_most": most, "served_most": served_most}
    return {"rate": rate} | {name: value if rate and math.isfinite(value) else None for name, value in told.items()}


def _stage(found: Rehearsal, stage: Position) -> dict[str, Any]:
    passages, lengths = found.passages(stage), sorted(found.lengths(stage))
    return {
        "title": stage.title,
        "runs": len(passages),
        "passed": sum(passage.verdict is Verdict.PROMOTE for passage in passages),
        "rolled_back": sum(passage.verdict is Verdict.ROLLBACK for passage in passages),
        "jobs_median": lengths[len(lengths) // 2] if lengths else None,
        "jobs_most": lengths[math.ceil(0.9 * len(lengths)) - 1] if lengths else None,
    }
