"""Rollouts as `documents` describes them. Everything is made of rows that `reading` has read."""

from datetime import datetime
from typing import Any, Final

from penstock.clock import iso
from penstock.registry.models import Deployment
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.free_running import FreeRun, Side
from penstock.rollouts.models import Decision, GatePoint, GateResult, Rollout, StoredPolicy
from penstock.rollouts.policy import Policy
from penstock.rollouts.reading import Story
from penstock.rollouts.states import Position, State, course, share
from penstock.rollouts.statistics import (
    RESOLUTION,
    Interval,
    Sample,
    Tally,
    log_sample_ratio_evidence,
    log_threshold,
    mean_interval,
)

_ALPHA: Final = 0.025  # on either side of an interval
_STOPPED: Final = (State.REJECTED, State.ROLLED_BACK, State.ABORTED)


def rollout_document(rollout: Rollout, versions: dict[str, Deployment]) -> dict[str, Any]:
    """As `RolloutDocument`."""
    ended = State(rollout.state).final or rollout.state == State.PROMOTED
    return {
        "id": rollout.id,
        "object": "rollout",
        "model": rollout.model_name,
        "candidate": _version(versions[rollout.candidate_id]),
        "champion": _version(versions[rollout.champion_id]),
        "status": rollout.state,
        "step": rollout.step,
        "paused_in": rollout.paused_in,
        "share": rollout.share,
        "note": rollout.note,
        "unit": rollout.unit,
        "policy_version": rollout.policy_version,
        "created_at": iso(rollout.created_at),
        "stage_started_at": iso(rollout.stage_started_at),
        "entered_at": iso(rollout.entered_at),
        "finished_at": iso(rollout.entered_at) if ended else None,
    }


def rollout_detail(story: Story) -> dict[str, Any]:
    """As `RolloutDetail`."""
    policy = Policy.model_validate(story.rollout.policy, strict=False)
    order = [(place.state.value, place.step) for place in course(policy)]
    gates = sorted(story.gates, key=lambda gate: order.index((gate.state, gate.step)))
    return rollout_document(story.rollout, story.versions) | {
        "policy": story.rollout.policy,
        "course": _course(story, policy),
        "gates": [_gate(gate, policy, story.points) for gate in gates],
        "decisions": [decision_document(decision) for decision in story.decisions],
    }


def decision_document(decision: Decision, *, evidence: bool = False) -> dict[str, Any]:
    """As `DecisionDocument`; with its evidence as `DecisionDetail`."""
    return {
        "id": decision.id,
        "object": "decision",
        "rollout_id": decision.rollout_id,
        "model": decision.model_name,
        "number": decision.number,
        "move": decision.move,
        "from_status": decision.from_state,
        "from_step": decision.from_step,
        "to_status": decision.to_state,
        "to_step": decision.to_step,
        "from_version": decision.from_version,
        "to_version": decision.to_version,
        "actor": {"kind": decision.actor_kind, "id": decision.actor_id, "name": decision.actor_name},
        "reason": decision.reason,
        "policy_version": decision.policy_version,
        "judgement": decision.judgement,
        "artifacts": decision.artifacts,
        "jobs": decision.jobs,
        "decided_at": iso(decision.decided_at),
    } | ({"evidence": decision.evidence} if evidence else {})


def policy_document(model_name: str, stored: StoredPolicy | None) -> dict[str, Any]:
    """As `PolicyDocument`; of none that is stored, the default one."""
    document = {"object": "rollout_policy", "model": model_name}
    if stored is None:
        default = Policy()
        told = {"number": 0, "version": default.version, "policy": default.model_dump(mode="json")}
        return document | told | dict.fromkeys(("actor", "reason", "created_at"))
    return document | {
        "number": stored.number,
        "version": stored.policy_version,
        "policy": stored.policy,
        "actor": {"kind": stored.actor_kind, "id": stored.actor_id, "name": stored.actor_name},
        "reason": stored.reason,
        "created_at": iso(stored.created_at),
    }


def evidence_document(evidence: Evidence, policy: Policy) -> dict[str, Any]:
    """As `EvidenceDocument`."""
    kept = EVIDENCE.dump_python(evidence, mode="json")
    return {
        "seconds": evidence.seconds,
        "step_units": evidence.step_units,
        "crashes": evidence.crashes,
        "arms": {arm: _arm(evidence, arm) for arm in ("candidate", "champion")},
        "sample_ratio": _sample_ratio(evidence.units, policy),
        "lost": evidence.lost,
        "free": _free(evidence.free),
        "scored": {name: _sample(sample) for name, sample in evidence.scored.items()},
        "pairs": {name: _sample(sample) for name, sample in evidence.pairs.items()},
        "offline": kept["offline"],
        "trouble": evidence.trouble,
    }


def _version(deployment: Deployment) -> dict[str, Any]:
    return {
        "version": deployment.model_version,
        "deployment_id": deployment.id,
        "digest": deployment.digest,
        "scheme": str(deployment.recipe.get("scheme")),
    }


# Its course


def _course(story: Story, policy: Policy) -> list[dict[str, Any]]:
    places = course(policy)
    at = _reached(story, places)
    return [
        {
            "status": place.state,
            "step": place.step,
            "title": place.title,
            "share": share(place, policy),
            "progress": _progress(story.rollout, number, at),
            **_times(story.decisions, place),
        }
        for number, place in enumerate(places)
    ]


def _reached(story: Story, places: tuple[Position, ...]) -> int:
    """How far it came: the last position of its course that a decision led to."""
    been = [(decision.to_state, decision.to_step) for decision in story.decisions]
    return max((number for number, place in enumerate(places) if (place.state, place.step) in been), default=0)


def _progress(rollout: Rollout, number: int, at: int) -> str:
    stopped = rollout.state in _STOPPED
    if number < at:
        return "passed"
    if number > at:
        return "not_reached" if stopped else "ahead"
    return "stopped" if stopped else "here"


def _times(decisions: list[Decision], place: Position) -> dict[str, str | None]:
    """First entered, last left; a pause is no leaving."""
    entered: datetime | None = None
    left: datetime | None = None
    for decision in decisions:
        if (decision.to_state, decision.to_step) == (place.state, place.step):
            entered, left = entered or decision.decided_at, None
        elif entered is not None and left is None and decision.to_state != State.PAUSED:
            left = decision.decided_at
    return {"entered_at": iso(entered), "left_at": iso(left)}


# Its gates


def _gate(gate: GateResult, policy: Policy, points: list[GatePoint]) -> dict[str, Any]:
    own = [point for point in points if (point.state, point.step) == (gate.state, gate.step)]
    return {
        "status": gate.state,
        "step": gate.step,
        "title": Position(State(gate.state), gate.step).title,
        "judged_at": iso(gate.judged_at),
        "judgement": gate.judgement,
        "evidence": evidence_document(EVIDENCE.validate_python(gate.evidence), policy),
        "history": [_point(point) for point in own],
    }


def _point(point: GatePoint) -> dict[str, Any]:
    told = {"verdict": point.verdict, "jobs_needed": point.jobs_needed, "guards": point.guards}
    return {"at": iso(point.at)} | told


def _arm(evidence: Evidence, arm: str) -> dict[str, Any]:
    units, failures = getattr(evidence.units, arm), getattr(evidence.failures, arm)
    return {
        "units": units,
        "failures": _rate(failures, units),
        "slow": sum(getattr(tally, arm) for tally in evidence.slow.values()),
        "judged": getattr(evidence.judged, arm),
    }


def _free(free: FreeRun) -> dict[str, Any]:
    sides = {arm: _free_side(free, getattr(free, arm)) for arm in ("candidate", "champion")}
    exact = free.exact / free.answered if free.answered else None
    return {"jobs": free.jobs, "answered": free.answered, "exact": exact, "errors": _sample(free.errors), **sides}


def _free_side(free: FreeRun, side: Side) -> dict[str, Any]:
    return {
        "failures": side.failures,
        "mean_seconds": side.seconds / free.timed if free.timed else None,
        "mean_device_seconds": side.device_seconds / free.metered if free.metered else None,
    }


def _rate(count: int, units: int) -> dict[str, Any]:
    if not units:
        return {"count": count, "rate": None, "low": None, "high": None}
    others = max(units - count, 0)
    told = _sample(Sample(((0, others), (RESOLUTION, count)), lower=0.0))
    return {"count": count, "rate": told["mean"], "low": told["low"], "high": told["high"]}


def _sample(sample: Sample) -> dict[str, Any]:
    if not sample.size:
        return {"units": 0, "mean": None, "low": None, "high": None}
    interval: Interval = mean_interval(sample, alpha_low=_ALPHA, alpha_high=_ALPHA)
    return {"units": sample.size, "mean": sample.mean, "low": interval.low, "high": interval.high}


def _sample_ratio(units: Tally, policy: Policy) -> dict[str, Any]:
    planned = sum(split.share * (split.candidate + split.champion) for split in units.splits)
    return {
        "planned": planned / units.total if units.total else None,
        "seen": units.candidate / units.total if units.total else None,
        "log_evidence": log_sample_ratio_evidence(units),
        "threshold": log_threshold(policy.alphas.sample_ratio),
    }
