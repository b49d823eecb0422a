"""What jobs may ask for: the models, which version serves each, and whether a worker is ready for it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from penstock.clock import iso
from penstock.registry.hosting_services import HostingState, live_hostings
from penstock.registry.models import Deployment, Hosting, RoutingPolicy


def list_models(session: Session) -> list[dict[str, Any]]:
    """A document for every model that takes jobs, by name."""
    champion, challenger = aliased(Deployment), aliased(Deployment)
    rows = session.execute(
        select(RoutingPolicy, champion, challenger.model_version)
        .join(champion, champion.id == RoutingPolicy.champion_id)
        .outerjoin(challenger, challenger.id == RoutingPolicy.challenger_id)
        .order_by(RoutingPolicy.model_name)
    ).all()
    hostings = live_hostings(session, [deployment.id for _, deployment, _ in rows])
    return [
        _document(
            policy, deployment, challenger_version, [host for host in hostings if host.deployment_id == deployment.id]
        )
        for policy, deployment, challenger_version in rows
    ]


def _document(
    policy: RoutingPolicy, champion: Deployment, challenger_version: str | None, hostings: Sequence[Hosting]
) -> dict[str, Any]:
    return {
        "id": policy.model_name,
        "object": "model",
        "created": int(champion.created_at.timestamp()),
        "owned_by": "penstock",
        "version": champion.model_version,
        "champion_since": iso(policy.champion_since),
        "challenger_version": challenger_version,
        "context_length": champion.context_length,
        "recipe": champion.recipe,
        "ready": any(host.state == HostingState.READY for host in hostings),
        "state": _state(hostings),
    }


def _state(hostings: Sequence[Hosting]) -> str:
    """In words, for people: ready, loading (so far), why it failed, or that nobody hosts it."""
    states = {HostingState(host.state): host for host in hostings}
    if HostingState.READY in states:
        return "ready"
    if HostingState.LOADING in states:
        return f"loading ({states[HostingState.LOADING].progress:.0%})"
    if HostingState.FAILED in states:
        return f"could not be loaded: {states[HostingState.FAILED].error}"
    return "no worker hosts it"
