"""What there is to serve: each model with its versions in traffic, how they stand on live workers, and why."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.registry.hosting_services import HostingState, live_hostings
from penstock.registry.models import Deployment, Hosting, RoutingPolicy


@dataclass(frozen=True, slots=True)
class VersionStanding:
    """A version and how it stands on live workers. `progress` is the furthest loading one's, 0 to 1."""

    version: str
    created_at: datetime
    context_length: int
    recipe: dict[str, Any]
    hosting_states: frozenset[HostingState]
    progress: float
    error: str | None

    @property
    def ready(self) -> bool:
        """Whether a live worker would take a job now."""
        return HostingState.READY in self.hosting_states

    @property
    def state(self) -> str:
        """The standing in a few words, with the reason."""
        if self.ready:
            return "ready"
        if HostingState.LOADING in self.hosting_states:
            return f"loading ({self.progress:.0%})"
        if HostingState.FAILED in self.hosting_states:
            return f"could not be loaded: {self.error}"
        if HostingState.COLD in self.hosting_states:
            return "cold: loaded when a job waits for it"
        return "no worker hosts it"


@dataclass(frozen=True, slots=True)
class ModelStanding:
    """A model: who serves, who challenges, who is to take over, and why. Without a champion it takes no jobs."""

    name: str
    champion: VersionStanding | None
    champion_since: datetime | None
    challenger: VersionStanding | None
    incoming: VersionStanding | None
    reason: str


def list_models(session: Session) -> list[ModelStanding]:
    """Every model that was ever routed, by name."""
    policies = session.scalars(select(RoutingPolicy).order_by(RoutingPolicy.model_name)).all()
    named = {
        identity
        for policy in policies
        for identity in (policy.champion_id, policy.challenger_id, policy.incoming_id)
        if identity is not None
    }
    hostings = live_hostings(session, named)
    versions = {
        deployment.id: _version(deployment, [hosting for hosting in hostings if hosting.deployment_id == deployment.id])
        for deployment in session.scalars(select(Deployment).where(Deployment.id.in_(named)))
    }
    return [
        ModelStanding(
            policy.model_name,
            versions[policy.champion_id] if policy.champion_id else None,
            policy.champion_since,
            versions[policy.challenger_id] if policy.challenger_id else None,
            versions[policy.incoming_id] if policy.incoming_id else None,
            policy.reason,
        )
        for policy in policies
    ]


def _version(deployment: Deployment, hostings: list[Hosting]) -> VersionStanding:
    loading = [hosting.progress for hosting in hostings if hosting.state == HostingState.LOADING]
    return VersionStanding(
        version=deployment.model_version,
        created_at=deployment.created_at,
        context_length=deployment.context_length,
        recipe=deployment.recipe,
        hosting_states=frozenset(HostingState(hosting.state) for hosting in hostings),
        progress=max(loading, default=0.0),
        error=next((hosting.error for hosting in hostings if hosting.error), None),
    )
