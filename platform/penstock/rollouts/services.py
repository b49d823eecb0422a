"""Rollouts: started, paused, resumed, promoted and ended by operators, judged by the one that leads.

Takes a session and never commits. Every move is one transaction: the rollout's row, what the move means for routes and
jobs (`penstock.rollouts.consequences`), and a decision in the ledger that says who made it, by which policy, and on
what evidence.
"""

import secrets
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from penstock.auth.audit import Actor, ActorKind
from penstock.deployments.services import desired_of, nowhere
from penstock.errors import AlreadyExists, IllegalTransition, ModelNotFound, NotFound, RolloutMoveRefused
from penstock.ids import new_id
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.registry.readiness import standing_of
from penstock.rollouts.consequences import follow_through
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.history import remember
from penstock.rollouts.lead import Lead, hold
from penstock.rollouts.ledger import JUDGEMENT, record
from penstock.rollouts.models import UNDER_WAY, GateResult, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import START, Move, State, course, move, stage, touched, unit
from penstock.rollouts.verdicts import Judgement, Verdict, judge
from penstock.routing.succession import Readiness

CONTROLLER: Final = Actor(ActorKind.SYSTEM, "controller", "the controller of rollouts", None, ())
_MOVES: Final = {Verdict.PROMOTE: Move.PROMOTE, Verdict.ROLLBACK: Move.ROLLBACK}


def start(
    session: Session, model_name: str, version: str, policy: Policy, actor: Actor, reason: str | None = None
) -> Rollout:
    """A rollout of that version against the model's champion, in its first gate.

    Raises `ModelNotFound` for a model or version that there is not, or that no champion serves, or that is placed where
    no live worker is, and `AlreadyExists` while another rollout of the model is under way. One that is placed cold is
    kept loaded while it goes on.
    """
    champion, candidate = _versions(session, model_name, version)
    document = policy.model_dump(mode="json")
    entered = move(START, Move.START, policy)
    created = session.scalars(
        insert(Rollout)
        .values(
            id=new_id("rol"),
            model_name=model_name,
            candidate_id=candidate.id,
            champion_id=champion,
            policy=document,
            policy_version=policy.version,
            seed=secrets.token_hex(16),
            state=entered.state,
            step=entered.step,
            share=touched(entered, policy),
            unit=unit(entered, policy),
            fence=1,
        )
        .on_conflict_do_nothing()
        .returning(Rollout)
    ).one_or_none()
    if created is None:
        raise AlreadyExists(f"a rollout of {model_name} is under way; wait for its end, or abort it", field="model")
    follow_through(session, created, Move.START, START, policy)
    record(session, created, Move.START, START, actor, reason=reason)
    return created


def pause(session: Session, rollout_id: str, actor: Actor, reason: str | None = None) -> Rollout:
    """The champion gets every new job until it is resumed. Raises `NotFound`, `RolloutMoveRefused`."""
    return _operate(session, rollout_id, Move.PAUSE, actor, reason)


def resume(session: Session, rollout_id: str, actor: Actor, reason: str | None = None) -> Rollout:
    """It goes on where it was, its time in that gate beginning anew. Raises `NotFound`, `RolloutMoveRefused`."""
    return _operate(session, rollout_id, Move.RESUME, actor, reason)


def abort(session: Session, rollout_id: str, actor: Actor, reason: str | None = None) -> Rollout:
    """It ends without a verdict. Raises `NotFound`, `RolloutMoveRefused`."""
    return _operate(session, rollout_id, Move.ABORT, actor, reason)


def roll_back(session: Session, rollout_id: str, actor: Actor, reason: str | None = None) -> Rollout:
    """An operator's own verdict; takes back a promotion, too, unless another version has taken over since.

    Raises `NotFound`, `RolloutMoveRefused`.
    """
    rollout = _locked(session, rollout_id)
    serving = session.scalar(select(RoutingPolicy.champion_id).where(RoutingPolicy.model_name == rollout.model_name))
    if rollout.state == State.PROMOTED and serving != rollout.candidate_id:
        raise RolloutMoveRefused("its version serves no longer; nothing is left to take back", state=rollout.state)
    return _operate(session, rollout_id, Move.ROLLBACK, actor, reason)


def promote(session: Session, rollout_id: str, actor: Actor, reason: str) -> Rollout:
    """An operator's own verdict: it passes the gate where it stands.

    Raises `NotFound`, `RolloutMoveRefused`: also where it would serve all jobs, and no live worker has it ready.
    """
    rollout = _locked(session, rollout_id)
    candidate = standing_of(session, session.get_one(Deployment, rollout.candidate_id))
    if in_last_gate(rollout) and candidate.readiness is not Readiness.READY:
        raise RolloutMoveRefused(
            f"no live worker has version {candidate.version} ready, so it cannot take all jobs", state=rollout.state
        )
    return _operate(session, rollout_id, Move.PROMOTE, actor, reason)


def under_way(session: Session) -> list[Rollout]:
    """Rollouts that have not ended, oldest first."""
    return list(session.scalars(select(Rollout).where(Rollout.state.in_(UNDER_WAY)).order_by(Rollout.id)))


def conclude(
    session: Session, lead: Lead, rollout_id: str, fence: int, evidence: Evidence, *, may_promote: bool = True
) -> Judgement | None:
    """Judge a rollout on the evidence, keep both, and move it if the verdict says so.

    Nothing happens, and the answer is none, where the rollout has moved since `fence`: the evidence is of another gate
    then. Unless it `may_promote`, a promotion is for a later time. Raises `LeadLost`.
    """
    rollout = locked(session, lead, rollout_id)
    position = rollout.position
    if rollout.fence != fence or not position.state.gate:
        return None
    policy = policy_of(rollout)
    judgement = judge(position, policy, evidence)
    _keep(session, rollout, evidence, judgement)
    if judgement.verdict is Verdict.PROMOTE and not may_promote:
        return judgement
    remember(session, rollout, judgement)
    if judgement.verdict is not Verdict.HOLD:
        _move(session, rollout, policy, _MOVES[judgement.verdict], CONTROLLER, judgement=judgement, evidence=evidence)
    return judgement


def give_up(session: Session, rollout: Rollout, reason: str) -> None:
    """End a rollout, which is locked, whose candidate cannot be tried at all."""
    _move(session, rollout, policy_of(rollout), Move.ROLLBACK, CONTROLLER, reason=reason)


def adopt(session: Session, rollout: Rollout, actor: Actor, reason: str) -> None:
    """Its version was made the champion by hand: the rollout, which is locked, is over, whatever gates were left."""
    _move(session, rollout, policy_of(rollout), Move.ADOPT, actor, reason=reason)


def locked(session: Session, lead: Lead, rollout_id: str) -> Rollout:
    """The rollout, for the one that leads to work at. Raises `LeadLost`."""
    hold(session, lead)
    return _locked(session, rollout_id)


def in_last_gate(rollout: Rollout) -> bool:
    """Whether the next promotion makes its version the champion."""
    return rollout.position == course(policy_of(rollout))[-2]


def policy_of(rollout: Rollout) -> Policy:
    """The policy that the rollout began with."""
    return Policy.model_validate(rollout.policy, strict=False)


def _versions(session: Session, model_name: str, version: str) -> tuple[str, Deployment]:
    """The champion's id, and the candidate: the newest deployment of that version."""
    champion = session.scalar(select(RoutingPolicy.champion_id).where(RoutingPolicy.model_name == model_name))
    if champion is None:
        raise ModelNotFound(
            f"no version of {model_name!r} serves jobs, so there is nothing to compare with", field="model"
        )
    named = select(Deployment).where(Deployment.model_name == model_name, Deployment.model_version == version)
    candidate = session.scalars(named.where(Deployment.state == "active").order_by(Deployment.id.desc())).first()
    if candidate is None or candidate.id == champion:
        told = "serves already" if candidate else "is hosted nowhere; give it the alias challenger"
        raise ModelNotFound(f"version {version} of {model_name!r} {told}", field="version")
    _refuse_nowhere(session, candidate)
    return champion, candidate


def _refuse_nowhere(session: Session, candidate: Deployment) -> None:
    """Raise `ModelNotFound` where operators want it where no live worker is: it would never be tried."""
    placed = bool(desired_of(session, [candidate.id]))
    if placed and (why := nowhere(session, candidate)):
        told = f"version {candidate.model_version} of {candidate.model_name!r} cannot be tried: {why}"
        raise ModelNotFound(f"{told}; place it on a live worker, or withdraw the wish", field="version")


def _operate(session: Session, rollout_id: str, how: Move, actor: Actor, reason: str | None) -> Rollout:
    rollout = _locked(session, rollout_id)
    try:
        _move(session, rollout, policy_of(rollout), how, actor, reason=reason)
    except IllegalTransition as error:
        raise RolloutMoveRefused(error.message, state=rollout.state) from None
    return rollout


def _locked(session: Session, rollout_id: str) -> Rollout:
    locked = select(Rollout).where(Rollout.id == rollout_id).with_for_update(key_share=True)
    rollout = session.scalars(locked.execution_options(populate_existing=True)).one_or_none()
    if rollout is None:
        raise NotFound(f"no rollout {rollout_id!r}", field="id")
    return rollout


def _move(session: Session, rollout: Rollout, policy: Policy, how: Move, actor: Actor, **told: Any) -> None:
    before = rollout.position
    after = move(before, how, policy)
    rollout.state, rollout.step = after.state, after.step
    rollout.paused_in = after.paused_in
    rollout.share, rollout.unit = touched(after, policy), unit(after, policy)
    rollout.fence += 1
    rollout.entered_at = session.scalars(select(func.clock_timestamp())).one()
    if after.state.gate and stage(after) is not stage(before):
        rollout.stage_started_at = rollout.entered_at
    session.flush()
    rerouted = follow_through(session, rollout, how, before, policy)
    record(session, rollout, how, before, actor, rerouted=rerouted, **told)


def _keep(session: Session, rollout: Rollout, evidence: Evidence, judgement: Judgement) -> None:
    kept = {
        "evidence": EVIDENCE.dump_python(evidence, mode="json"),
        "judgement": JUDGEMENT.dump_python(judgement, mode="json"),
        "judged_at": func.clock_timestamp(),
    }
    result = insert(GateResult).values(rollout_id=rollout.id, state=rollout.state, step=rollout.step, **kept)
    session.execute(result.on_conflict_do_update(index_elements=["rollout_id", "state", "step"], set_=kept))
