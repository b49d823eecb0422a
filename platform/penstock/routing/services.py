"""Choosing the model version of a job, inside the transaction that submits it. MLflow is never asked on the way."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BindParameter, bindparam, case, or_, select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.errors import ModelNotFound
from penstock.registry.models import Deployment, RoutingPolicy

_ALIAS: Final[BindParameter[str]] = bindparam("alias")
_POLICY, _VERSION = RoutingPolicy.__table__.c, Deployment.__table__.c
# One object, so that SQLAlchemy compiles it once; of tables and not of classes, which costs it half as much.
_NAMED: Final = (
    select(_POLICY.champion_since, *_VERSION)
    .join(
        Deployment.__table__,
        _VERSION.id
        == case((_ALIAS == "champion", _POLICY.champion_id), (_ALIAS == "challenger", _POLICY.challenger_id)),
    )
    .where(_POLICY.model_name == bindparam("name"))
)


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The deployment that a job goes to, as it is now, and why, as the job's document shows it."""

    deployment: Deployment
    reason: dict[str, Any]


def choose(session: Session, model: str) -> RoutingDecision:
    """Resolve `name`, `name@champion`, `name@challenger` or `name:version`.

    Raises `ModelNotFound`, which names the models that there are.
    """
    if ":" in model:
        name, version = model.split(":", 1)
        return _by_version(session, name, version)
    name, _, alias = model.partition("@")
    return _by_alias(session, name, alias or "champion")


def model_name_of(model: str) -> str:
    """The name in `name`, `name@alias` or `name:version`."""
    return model.split(":", 1)[0] if ":" in model else model.partition("@")[0]


def available_models(session: Session) -> list[str]:
    """The names that jobs may ask for."""
    routed = select(RoutingPolicy.model_name).where(RoutingPolicy.champion_id.is_not(None))
    return list(session.scalars(routed.order_by(RoutingPolicy.model_name)))


def _by_version(session: Session, name: str, version: str) -> RoutingDecision:
    champion = select(RoutingPolicy.champion_id).where(RoutingPolicy.model_name == name).scalar_subquery()
    # A model that was deleted and registered anew can have two of one number for a moment: the newer one is meant.
    deployment = session.scalars(
        select(Deployment)
        .where(
            Deployment.model_name == name,
            Deployment.model_version == version,
            Deployment.state == "active",
            or_(Deployment.first_ready_at.is_not(None), Deployment.id == champion),
        )
        .order_by(Deployment.created_at.desc(), Deployment.id.desc())
        .limit(1)
    ).one_or_none()
    if deployment is None:
        raise ModelNotFound(
            f"no version {version!r} of {name!r} takes jobs; {_what_there_is(session)}",
            field="model",
            available=available_models(session),
        )
    return RoutingDecision(deployment, {"rule": "version", "version": version})


def _by_alias(session: Session, name: str, alias: str) -> RoutingDecision:
    found = session.execute(_NAMED, {"name": name, "alias": alias}).mappings().one_or_none()
    if found is None:
        policy = session.get(RoutingPolicy, name)
        raise ModelNotFound(_why_not(session, policy, name, alias), field="model", available=available_models(session))
    deployment = Deployment(**{column.name: found[column] for column in _VERSION})
    since = {"since": iso(found["champion_since"])} if alias == "champion" else {}
    return RoutingDecision(deployment, {"rule": "alias", "alias": alias, "version": deployment.model_version, **since})


def _why_not(session: Session, policy: RoutingPolicy | None, name: str, alias: str) -> str:
    if policy is not None and policy.champion_id is None and alias == "champion":
        return f"{name!r} takes no jobs: {policy.reason}; {_what_there_is(session)}"
    return f"no model {name!r} with the alias {alias!r}; {_what_there_is(session)}"


def _what_there_is(session: Session) -> str:
    available = available_models(session)
    return f"models that take jobs: {', '.join(available)}" if available else "no model takes jobs yet"
