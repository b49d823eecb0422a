"""What the web process does with replays: begin, read, cancel. Takes a session, never commits."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.auth.services import get_tenant
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.bulk.services import actor_document
from penstock.errors import ModelNotFound, NotFound, ReplayFinished, TooManyReplays, ValidationFailed
from penstock.ids import new_id
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.replay.comparing import drop
from penstock.replay.models import UNFINISHED, Comparison, Replay, ReplayState
from penstock.replay.schemas import ReplayRequest

MOST_UNFINISHED: Final = 10


def begin(session: Session, wanted: ReplayRequest, actor: Actor) -> Replay:
    """A replay that control processes go about.

    Raises `ModelNotFound` on `model` or `against`, `ValidationFailed` where they are of two models, `NotFound` for a
    tenant that there is not, and `TooManyReplays`.
    """
    candidate = _deployment(session, wanted.model, "model")
    reference = _deployment(session, wanted.against or f"{candidate.model_name}@champion", "against")
    if reference.model_name != candidate.model_name:
        raise ValidationFailed(f"must be a version of {candidate.model_name!r}, as model is", field="against")
    if wanted.tenant is not None:
        get_tenant(session, wanted.tenant)
    unfinished = select(func.count()).select_from(Replay).where(Replay.state.in_(UNFINISHED))
    if (session.scalar(unfinished) or 0) >= MOST_UNFINISHED:
        raise TooManyReplays(f"{MOST_UNFINISHED} replays go on; wait, or cancel one")
    row = {
        "id": new_id("rpl"),
        "mode": wanted.mode,
        "model_name": candidate.model_name,
        "candidate_id": candidate.id,
        "reference_id": reference.id,
        "filter": wanted.stored_filter(),
        "actor": actor_document(actor),
    }
    replay = session.scalars(insert(Replay).values(row).returning(Replay)).one()
    details = {"model": wanted.model, "against": wanted.against, "mode": wanted.mode, "filter": wanted.stored_filter()}
    _record(session, actor, Action.REPLAY_CREATED, replay, details)
    return replay


def get(session: Session, replay_id: str, *, lock: bool = False) -> Replay:
    """Raises `NotFound`."""
    replay = session.get(Replay, replay_id, with_for_update=lock or None, populate_existing=lock)
    if replay is None:
        raise NotFound(f"no replay {replay_id!r}", field="id")
    return replay


def list_replays(session: Session, *, limit: int, before: str | None = None) -> tuple[Sequence[Replay], str | None]:
    """A page of replays, newest first, and the cursor of the next page if there is one."""
    query = select(Replay) if before is None else select(Replay).where(Replay.id < before)
    found = session.scalars(query.order_by(Replay.id.desc()).limit(limit + 1)).all()
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def cancel(session: Session, replay_id: str, actor: Actor) -> Replay:
    """Compare no more; what was found stays. Asking again changes nothing. Raises `NotFound`, `ReplayFinished`."""
    replay = get(session, replay_id, lock=True)
    if replay.state == ReplayState.COMPLETED:
        raise ReplayFinished(f"{replay_id} is completed", status_now=replay.state)
    if replay.state != ReplayState.CANCELLED:
        now = session.scalars(select(func.clock_timestamp())).one()
        replay.state, replay.finished_at = ReplayState.CANCELLED, now
        drop(session, Comparison.replay_id == replay_id)
        _record(session, actor, Action.REPLAY_CANCELLED, replay, {})
    return replay


def versions_of(session: Session, replays: Sequence[Replay]) -> dict[str, str]:
    """The version numbers of all deployments that the replays name, by id."""
    ids = {each for replay in replays for each in (replay.candidate_id, replay.reference_id)}
    named = session.scalars(select(Deployment).where(Deployment.id.in_(ids)))
    return {deployment.id: deployment.model_version for deployment in named}


def _deployment(session: Session, model: str, field: str) -> Deployment:
    """`name:version`, `name@champion` or `name@challenger`; `name` is its champion."""
    name, _, version = model.partition(":")
    if version:
        named = select(Deployment).where(Deployment.model_name == name, Deployment.model_version == version)
        found = session.scalars(named.where(Deployment.state == "active").order_by(Deployment.id.desc())).first()
    else:
        name, _, alias = model.partition("@")
        columns = {"": RoutingPolicy.champion_id, "champion": RoutingPolicy.champion_id}
        column = (columns | {"challenger": RoutingPolicy.challenger_id}).get(alias)
        aliased = select(Deployment).join(RoutingPolicy, Deployment.id == column)
        found = None if column is None else session.scalars(aliased.where(RoutingPolicy.model_name == name)).first()
    if found is None:
        raise ModelNotFound(f"no version is hosted as {model!r}; name one as name:version", field=field)
    return found


def _record(session: Session, actor: Actor, action: Action, replay: Replay, details: dict[str, Any]) -> None:
    tenant_id = actor.tenant_id or SYSTEM_TENANT_ID
    record(session, actor, action, tenant_id=tenant_id, target=replay.id, details=details)
