"""Aliases that somebody moves in MLflow: an operator's decision, written down; followed, or else set back.

MLflow says neither who moved an alias nor from where. What names another version than jobs go to, or wait for, and was
not set by us, was moved by hand.
"""

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Actor, ActorKind
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts import services as rollouts
from penstock.rollouts.events import ChampionEvent
from penstock.rollouts.ledger import HandMove, record_by_hand
from penstock.rollouts.models import UNDER_WAY, Rollout

MLFLOW: Final = Actor(ActorKind.SYSTEM, "mlflow", "somebody in MLflow", None, ())


def lock_rollouts(session: Session) -> None:
    """Lock all rollouts that are under way, before any route: whoever moves one locks them in this order."""
    session.execute(
        select(Rollout.id).where(Rollout.state.in_(UNDER_WAY)).order_by(Rollout.id).with_for_update(key_share=True)
    )


def note_hand_move(session: Session, policy: RoutingPolicy, named: Deployment | None, *, revert: bool) -> None:
    """Write down that the alias `champion` names another version (or none) than it did, and what follows from that.

    With `revert` it is to be set back, and nothing else happens; a model that had no version yet takes its first one.
    """
    last_id = policy.incoming_id or policy.champion_id
    if (named.id if named else None) == last_id:
        return
    last = session.get(Deployment, last_id) if last_id else None
    # One number with other files is a model that was registered anew: there is nothing to set back to.
    if revert and last is not None and _version(named) != last.model_version:
        _set_back(session, policy, last, named)
        return
    reason = f"the alias champion was {_told(named)} in MLflow"
    event = ChampionEvent.MOVED if named else ChampionEvent.REMOVED
    record_by_hand(session, policy, event, HandMove(last, named), MLFLOW, reason)
    _end_rollout(session, policy, named, reason)


def note_gone(session: Session, policy: RoutingPolicy) -> None:
    """Write down that the model, which had a version, was deleted."""
    last_id = policy.incoming_id or policy.champion_id
    if last_id is None:
        return
    gone, reason = HandMove(session.get_one(Deployment, last_id), None), "the model was deleted in MLflow"
    record_by_hand(session, policy, ChampionEvent.REMOVED, gone, MLFLOW, reason)
    _end_rollout(session, policy, None, reason)


def kept_hosted(session: Session) -> set[str]:
    """What workers should host whatever aliases say: both versions of a rollout, and those that are kept warm."""
    both = select(Rollout.candidate_id, Rollout.champion_id).where(Rollout.state.in_(UNDER_WAY))
    warm = select(Deployment.id).where(Deployment.keep_warm_until > func.clock_timestamp())
    return {identity for row in session.execute(both) for identity in row} | set(session.scalars(warm))


def _set_back(session: Session, policy: RoutingPolicy, kept: Deployment, named: Deployment | None) -> None:
    policy.alias_to = kept.model_version
    told = f"the alias champion was {_told(named)} in MLflow"
    reason = f"{told}, and is set back: PENSTOCK_REGISTRY_HAND_MOVES is revert"
    record_by_hand(session, policy, ChampionEvent.SET_BACK, HandMove(named, kept), MLFLOW, reason)


def _end_rollout(session: Session, policy: RoutingPolicy, named: Deployment | None, reason: str) -> None:
    """A rollout against a version that is champion no longer proves nothing any more."""
    mine = select(Rollout).where(Rollout.model_name == policy.model_name, Rollout.state.in_(UNDER_WAY))
    rollout = session.scalars(mine.execution_options(populate_existing=True)).one_or_none()
    if rollout is None:
        return
    if named is not None and named.id == rollout.candidate_id:
        rollouts.adopt(session, rollout, MLFLOW, reason)
    else:
        rollouts.abort(session, rollout.id, MLFLOW, reason)


def _told(named: Deployment | None) -> str:
    return f"moved to version {named.model_version}" if named else "removed"


def _version(deployment: Deployment | None) -> str | None:
    return deployment.model_version if deployment is not None else None
