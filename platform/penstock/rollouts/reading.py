"""What is asked for of rollouts: lists, one with its story, and the ledger. Takes a session, changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from penstock.errors import NotFound
from penstock.registry.models import Deployment
from penstock.rollouts.history import points
from penstock.rollouts.models import Decision, GatePoint, GateResult, Rollout, StoredPolicy
from penstock.rollouts.policy import Policy

Entry = TypeVar("Entry", Rollout, Decision)


@dataclass(frozen=True, slots=True)
class Story:
    """A rollout with all that is known of it. `versions` are its deployments by id."""

    rollout: Rollout
    versions: dict[str, Deployment]
    gates: list[GateResult]
    points: list[GatePoint]
    decisions: list[Decision]


def get(session: Session, rollout_id: str) -> Rollout:
    """Raises `NotFound`."""
    rollout = session.get(Rollout, rollout_id, populate_existing=True)
    if rollout is None:
        raise NotFound(f"no rollout {rollout_id!r}", field="id")
    return rollout


def story(session: Session, rollout_id: str) -> Story:
    """Raises `NotFound`."""
    rollout = get(session, rollout_id)
    gates = session.scalars(select(GateResult).where(GateResult.rollout_id == rollout_id)).all()
    moves = session.scalars(select(Decision).where(Decision.rollout_id == rollout_id).order_by(Decision.number))
    known = versions_of(session, [rollout])
    return Story(rollout, known, list(gates), list(points(session, rollout_id)), list(moves))


def list_rollouts(
    session: Session, *, model: str | None, status: str | None, limit: int, before: str | None = None
) -> tuple[list[Rollout], str | None]:
    """A page of rollouts, newest first, and the cursor of the next page (an id) if there is one."""
    return _page(session, Rollout, ((Rollout.model_name, model), (Rollout.state, status)), limit, before)


def list_decisions(
    session: Session, *, model: str | None, rollout_id: str | None, limit: int, before: str | None = None
) -> tuple[list[Decision], str | None]:
    """A page of the ledger over all models, newest first, and the cursor of the next page (an id) if there is one."""
    return _page(session, Decision, ((Decision.model_name, model), (Decision.rollout_id, rollout_id)), limit, before)


def policies(session: Session, model_name: str) -> list[StoredPolicy]:
    """A model's own policies, newest first."""
    own = select(StoredPolicy).where(StoredPolicy.model_name == model_name)
    return list(session.scalars(own.order_by(StoredPolicy.number.desc())))


def newest_policies(session: Session) -> dict[str, StoredPolicy]:
    """The policy of each model that has its own, by model."""
    newest = select(StoredPolicy).ext(distinct_on(StoredPolicy.model_name))
    found = session.scalars(newest.order_by(StoredPolicy.model_name, StoredPolicy.number.desc()))
    return {stored.model_name: stored for stored in found}


def as_policy(stored: StoredPolicy) -> Policy:
    """What it says."""
    return Policy.model_validate(stored.policy, strict=False)


def _page(
    session: Session, kind: type[Entry], wanted: Iterable[tuple[Any, str | None]], limit: int, before: str | None
) -> tuple[list[Entry], str | None]:
    query = select(kind)
    for column, value in wanted:
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(kind.id < before)
    found = list(session.scalars(query.order_by(kind.id.desc()).limit(limit + 1)))
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def versions_of(session: Session, rollouts: Iterable[Rollout]) -> dict[str, Deployment]:
    """Their deployments, by id."""
    ids = {id_ for rollout in rollouts for id_ in (rollout.candidate_id, rollout.champion_id)}
    return {found.id: found for found in session.scalars(select(Deployment).where(Deployment.id.in_(ids)))}
