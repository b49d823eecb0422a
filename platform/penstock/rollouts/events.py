"""Events of rollouts, and of champions that are moved by hand: to the feeds of operators' tenants, and to those of
their webhook endpoints that name them.

An operators' tenant has a person with the role, or a key with the scope. An event holds versions, figures and an
operator's own words, and nothing of a tenant's job.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session

from penstock.auth.models import ApiKey, Tenant, User
from penstock.auth.services import Role, Scope
from penstock.events.services import publish
from penstock.logs import get_logger
from penstock.rollouts.models import Decision, Rollout
from penstock.rollouts.presentation import decision_document, rollout_document
from penstock.rollouts.reading import versions_of
from penstock.rollouts.states import Move, State
from penstock.webhooks.queueing import Owed, tell_endpoints

log = get_logger(__name__)


class RolloutEvent(StrEnum):
    """What can happen to a rollout. A verdict that ends it is followed by how it ended."""

    STARTED = "rollout.started"
    VERDICT = "rollout.verdict"
    PAUSED = "rollout.paused"
    RESUMED = "rollout.resumed"
    ABORTED = "rollout.aborted"
    PROMOTED = "rollout.promoted"
    REJECTED = "rollout.rejected"
    ROLLED_BACK = "rollout.rolled_back"


class ChampionEvent(StrEnum):
    """What somebody can do to the alias `champion` in MLflow; the last is that we undid it."""

    MOVED = "model.champion_moved"
    REMOVED = "model.champion_removed"
    SET_BACK = "model.champion_set_back"


_OF_MOVES: Final = {
    Move.START: RolloutEvent.STARTED,
    Move.PROMOTE: RolloutEvent.VERDICT,
    Move.ROLLBACK: RolloutEvent.VERDICT,
    Move.PAUSE: RolloutEvent.PAUSED,
    Move.RESUME: RolloutEvent.RESUMED,
    Move.ABORT: RolloutEvent.ABORTED,
    Move.ADOPT: RolloutEvent.VERDICT,
}
_OF_ENDS: Final = {
    State.PROMOTED: RolloutEvent.PROMOTED,
    State.REJECTED: RolloutEvent.REJECTED,
    State.ROLLED_BACK: RolloutEvent.ROLLED_BACK,
}


def tell(session: Session, rollout: Rollout, decision: Decision) -> None:
    """Tell operators of a move, in the transaction that makes it and after the decision was flushed."""
    events = events_of(decision)
    _tell_operators(session, events, event_document(session, rollout, decision))
    for event in events:
        log.info(event.value, rollout=rollout.id, model=rollout.model_name, state=rollout.state, decision=decision.id)


def tell_by_hand(session: Session, event: ChampionEvent, decision: Decision) -> None:
    """Tell operators of a move that no rollout made, in the transaction that writes it down; `data` is the decision."""
    _tell_operators(session, [event], decision_document(decision))
    versions = (decision.from_version, decision.to_version)
    log.info(event.value, model=decision.model_name, versions=versions, decision=decision.id)


def events_of(decision: Decision) -> list[RolloutEvent]:
    """Those that a move is told by, in order."""
    end = _OF_ENDS.get(State(decision.to_state)) if decision.to_state else None
    return [_OF_MOVES[Move(decision.move)], *([end] if end else [])]


def event_document(session: Session, rollout: Rollout, decision: Decision) -> dict[str, Any]:
    """What an event says: where the rollout stands now, and the decision without the evidence behind it."""
    document = rollout_document(rollout, versions_of(session, [rollout]))
    return document | {"decision": decision_document(decision)}


def _tell_operators(session: Session, events: Sequence[StrEnum], document: dict[str, Any]) -> None:
    tenants = operators_tenants(session)
    for event in events:
        for tenant_id in tenants:
            publish(session, tenant_id=tenant_id, event_type=event.value, data=document)
            tell_endpoints(session, Owed(tenant_id, event.value, document))


def operators_tenants(session: Session) -> Sequence[str]:
    """The tenants that run the installation, the oldest first."""
    person = exists().where(User.tenant_id == Tenant.id, User.role == Role.OPERATOR.value, User.disabled_at.is_(None))
    key = exists().where(
        ApiKey.tenant_id == Tenant.id,
        ApiKey.scopes.any_() == Scope.OPERATOR.value,
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
    )
    return session.scalars(
        select(Tenant.id).where(or_(person, key), Tenant.suspended_at.is_(None)).order_by(Tenant.id)
    ).all()
