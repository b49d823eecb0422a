"""Choosing the model version of a job, inside the transaction that submits it. MLflow is never asked on the way."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BindParameter, bindparam, case, or_, select
from sqlalchemy.orm import Session

from penstock.clock import iso
from penstock.errors import ModelNotFound
from penstock.registry.models import Deployment, RoutingPolicy

_ALIAS: Final[BindParameter[str]] = bindparam("alias")
# One object, so that SQLAlchemy compiles it once and need not even look whether it has; so with each like it.
_NAMED: Final = (
    select(RoutingPolicy.champion_since, Deployment)
    .join(
        Deployment,
        Deployment.id
        == case(
            (_ALIAS == "champion", RoutingPolicy.champion_id),
            (_ALIAS == "challenger", RoutingPolicy.challenger_id),
        ),
    )
    .where(RoutingPolicy.model_name == bindparam("name"))
)


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The deployment that a job goes to, and why, as its document shows it."""

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
    found = session.execute(_NAMED, {"name": name, "alias": alias}).one_or_none()
    if found is None:
        policy = session.get(RoutingPolicy, name)
        raise ModelNotFound(_why_not(session, policy, name, alias), field="model", available=available_models(session))
    champion_since, deployment = found
    reason = {"rule": "alias", "alias": alias, "version": deployment.model_version}
    return RoutingDecision(deployment, reason | ({"since": iso(champion_since)} if alias == "champion" else {}))


def _why_not(session: Session, policy: RoutingPolicy | None, name: str, alias: str) -> str:
    if policy is not None and policy.champion_id is None and alias == "champion":
        return f"{name!r} takes no jobs: {policy.reason}; {_what_there_is(session)}"
    return f"no model {name!r} with the alias {alias!r}; {_what_there_is(session)}"


def _what_there_is(session: Session) -> str:
    available = available_models(session)
    return f"models that take jobs: {', '.join(available)}" if available else "no model takes jobs yet"
