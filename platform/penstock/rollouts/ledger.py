"""The ledger of decisions: append-only, without a gap, linked to the versions that were judged and to their jobs."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Actor
from penstock.ids import first_id, new_id
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.assignment import Arm
from penstock.rollouts.events import ChampionEvent, tell, tell_by_hand
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.models import Assignment, Decision, Rollout
from penstock.rollouts.rerouting import Rerouted
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Judgement

_BY_HAND: Final = {
    ChampionEvent.MOVED: "alias_moved",
    ChampionEvent.REMOVED: "alias_removed",
    ChampionEvent.SET_BACK: "alias_set_back",
}
JUDGEMENT: Final = TypeAdapter(Judgement)
_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class HandMove:
    """Which version an alias named before, and after; None where it names none."""

    before: Deployment | None
    after: Deployment | None

    @property
    def versions(self) -> dict[str, Deployment | None]:
        return {"from": self.before, "to": self.after}


def ledger(session: Session, rollout_id: str) -> list[Decision]:
    """A rollout's moves, from the first on."""
    return list(session.scalars(select(Decision).where(Decision.rollout_id == rollout_id).order_by(Decision.number)))


def record(
    session: Session,
    rollout: Rollout,
    how: str,
    before: Position,
    actor: Actor,
    *,
    reason: str | None = None,
    judgement: Judgement | None = None,
    evidence: Evidence | None = None,
    rerouted: Rerouted | None = None,
) -> Decision:
    """Write down the move that the rollout has just made, and tell operators of it."""
    versions = {
        "champion": session.get_one(Deployment, rollout.champion_id),
        "candidate": session.get_one(Deployment, rollout.candidate_id),
    }
    decision = Decision(
        id=new_id("dcs"),
        model_name=rollout.model_name,
        rollout_id=rollout.id,
        number=rollout.fence,
        move=how,
        from_state=before.state,
        from_step=before.step,
        to_state=rollout.state,
        to_step=rollout.step,
        from_version=versions[_serving(before.state)].model_version,
        to_version=versions[_serving(State(rollout.state))].model_version,
        artifacts={name: _artifact(version) for name, version in versions.items()},
        jobs=_jobs(session, rollout, rerouted),
        **_actor(actor),
        reason=reason,
        policy_version=rollout.policy_version,
        judgement=None if judgement is None else JUDGEMENT.dump_python(judgement, mode="json"),
        evidence=None if evidence is None else EVIDENCE.dump_python(evidence, mode="json"),
    )
    session.add(decision)
    session.flush()
    tell(session, rollout, decision)
    return decision


def record_by_hand(
    session: Session, route: RoutingPolicy, event: ChampionEvent, moved: HandMove, actor: Actor, reason: str
) -> Decision:
    """Write down that the alias `champion` was moved, but not by a rollout, and tell operators of it.

    The model's route is locked: it is what keeps the numbers without a gap.
    """
    model_name = route.model_name
    mine = select(func.count()).where(Decision.model_name == model_name, Decision.rollout_id.is_(None))
    decision = Decision(
        id=new_id("dcs"),
        model_name=model_name,
        number=(session.scalar(mine) or 0) + 1,
        move=_BY_HAND[event],
        from_version=moved.before.model_version if moved.before else None,
        to_version=moved.after.model_version if moved.after else None,
        artifacts={name: _artifact(version) for name, version in moved.versions.items() if version is not None},
        **_actor(actor),
        reason=reason,
    )
    session.add(decision)
    session.flush()
    tell_by_hand(session, event, decision)
    return decision


def _serving(state: State) -> str:
    return "candidate" if state is State.PROMOTED else "champion"


def _artifact(version: Deployment) -> dict[str, str]:
    return {"version": version.model_version, "digest": version.digest, "deployment": version.id}


def _actor(actor: Actor) -> dict[str, str]:
    return {"actor_kind": actor.kind.value, "actor_id": actor.id, "actor_name": actor.name}


def _jobs(session: Session, rollout: Rollout, rerouted: Rerouted | None) -> dict[str, Any]:
    """Of a rollout that ends in harm or by hand, which jobs the candidate failed, and which went to the champion."""
    if rerouted is None or State(rollout.state) not in (State.ROLLED_BACK, State.ABORTED):
        return {}
    failed = (
        select(Job.id)
        .join(Assignment, Assignment.job_id == Job.id)
        .where(
            Assignment.job_id >= first_id("job", rollout.created_at),
            Assignment.rollout_id == rollout.id,
            Assignment.arm == Arm.CANDIDATE,
            Job.state == JobState.FAILED,
        )
    )
    ids = session.scalars(failed.order_by(Job.id.desc()).limit(_SHOWN)).all()
    count = session.scalar(select(func.count()).select_from(failed.subquery())) or 0
    return {"failed": {"count": count, "ids": list(ids)}, "rerouted": rerouted.document}
