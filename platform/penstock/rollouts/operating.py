"""What operators do with rollouts and policies, each act with its entry in the record. Never commits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.errors import AlreadyExists, IdempotencyKeyReused, ModelNotFound
from penstock.files import services as files
from penstock.idempotency.services import HEADER, KeyedRequest
from penstock.registry.models import Deployment
from penstock.rollouts import reading, services
from penstock.rollouts.flips import Flip, Order, find_flips, flips_of
from penstock.rollouts.models import Rollout, StoredPolicy
from penstock.rollouts.policy import Policy

Moving = Callable[[Session, str, Actor, str], Rollout]
MOVES: Final[dict[str, tuple[Moving, Action]]] = {
    "pause": (services.pause, Action.ROLLOUT_PAUSED),
    "resume": (services.resume, Action.ROLLOUT_RESUMED),
    "abort": (services.abort, Action.ROLLOUT_ABORTED),
    "rollback": (services.roll_back, Action.ROLLOUT_ROLLED_BACK),
    "promote": (services.promote, Action.ROLLOUT_PROMOTED),
}
"""An operator's words, the service behind each, and how the record calls it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which version is to earn its place, by which policy: without one by the model's own."""

    model: str
    version: str
    policy: Policy | None
    reason: str | None
    actor: Actor
    tenant_id: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A rollout. `replayed` when an earlier request with the same key started it."""

    rollout: Rollout
    replayed: bool


def begin(session: Session, wish: Wish, keyed: KeyedRequest | None) -> Begun:
    """Start it. Raises what `services.start` does, `NotFound` for the policy's file, and `IdempotencyKeyReused`."""
    if keyed is not None and (before := _begun_before(session, keyed)) is not None:
        return Begun(before, replayed=True)
    policy = wish.policy or policy_of(session, wish.model)
    if policy.offline and policy.offline.data:
        files.get(session, wish.tenant_id, policy.offline.data, field="policy.offline.data")
    try:
        rollout = services.start(session, wish.model, wish.version, policy, wish.actor, wish.reason)
    except AlreadyExists:  # perhaps by the same request, which was being handled
        if keyed is not None and (before := _begun_before(session, keyed)) is not None:
            return Begun(before, replayed=True)
        raise
    rollout.started_by = wish.tenant_id
    if keyed is not None:
        rollout.idempotency_key, rollout.fingerprint = keyed.key, keyed.fingerprint
    session.flush()
    details = {"model": wish.model, "version": wish.version, "policy": policy.version, "reason": wish.reason}
    record(session, wish.actor, Action.ROLLOUT_STARTED, tenant_id=wish.tenant_id, target=rollout.id, details=details)
    return Begun(rollout, replayed=False)


def move(session: Session, rollout_id: str, name: str, actor: Actor, reason: str, *, tenant_id: str) -> Rollout:
    """One of `MOVES`. Raises `NotFound` and `RolloutMoveRefused`."""
    moving, action = MOVES[name]
    rollout = moving(session, rollout_id, actor, reason)
    details = {"model": rollout.model_name, "status": rollout.state, "reason": reason}
    record(session, actor, action, tenant_id=tenant_id, target=rollout_id, details=details)
    return rollout


def read_flips(
    session: Session, rollout_id: str, order: Order, limit: int, actor: Actor, *, tenant_id: str
) -> list[Flip]:
    """The answers on which the versions differ. They hold text of tenants, so the record says who read them."""
    reading.get(session, rollout_id)
    found = find_flips(session, flips_of(rollout_id), order, limit)
    details = {"jobs": [flip.source.id for flip in found]}
    record(session, actor, Action.ROLLOUT_TEXT_READ, tenant_id=tenant_id, target=rollout_id, details=details)
    return found


def policy_of(session: Session, model_name: str) -> Policy:
    """The model's own policy, or else the default one."""
    stored = stored_policy(session, model_name)
    return Policy() if stored is None else Policy.model_validate(stored.policy, strict=False)


def stored_policy(session: Session, model_name: str) -> StoredPolicy | None:
    """The model's own policy, as it was set last."""
    own = select(StoredPolicy).where(StoredPolicy.model_name == model_name)
    return session.scalars(own.order_by(StoredPolicy.number.desc()).limit(1)).first()


def set_policy(
    session: Session, model_name: str, policy: Policy, actor: Actor, reason: str | None, *, tenant_id: str
) -> StoredPolicy:
    """Make it the model's own. The same again changes nothing. Raises `ModelNotFound`."""
    refuse_unknown_model(session, model_name)
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"policy of {model_name}", 0))))
    latest = stored_policy(session, model_name)
    if latest is not None and latest.policy_version == policy.version:
        return latest
    stored = StoredPolicy(
        model_name=model_name,
        number=(latest.number if latest else 0) + 1,
        policy=policy.model_dump(mode="json"),
        policy_version=policy.version,
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_name=actor.name,
        reason=reason,
    )
    session.add(stored)
    session.flush()
    session.refresh(stored)
    details: dict[str, Any] = {"policy": policy.version, "number": stored.number, "reason": reason}
    record(session, actor, Action.ROLLOUT_POLICY_SET, tenant_id=tenant_id, target=model_name, details=details)
    return stored


def refuse_unknown_model(session: Session, model_name: str) -> None:
    """Raise `ModelNotFound` for a model of which no version was ever deployed."""
    if session.scalar(select(Deployment.id).where(Deployment.model_name == model_name).limit(1)) is None:
        raise ModelNotFound(f"no model {model_name!r}", field="model")


def _begun_before(session: Session, keyed: KeyedRequest) -> Rollout | None:
    named = select(Rollout).where(Rollout.started_by == keyed.tenant_id, Rollout.idempotency_key == keyed.key)
    rollout = session.scalars(named).one_or_none()
    if rollout is not None and rollout.fingerprint != keyed.fingerprint:
        raise IdempotencyKeyReused(
            f"this {HEADER} came with another request before, which started {rollout.id}; a new one needs a new key",
            field=HEADER,
        )
    return rollout
