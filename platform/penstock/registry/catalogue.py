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
    deployment_id: str
    context_length: int
    recipe: dict[str, Any]
    ready_workers: int
    loading_workers: int
    failed_workers: int
    progress: float
    error: str | None

    @property
    def summary(self) -> str:
        """The standing in a few words."""
        if self.ready_workers:
            return f"ready on {self.ready_workers} worker{'s' if self.ready_workers > 1 else ''}"
        if self.loading_workers:
            return f"loading, {self.progress:.0%}"
        return f"cannot be loaded: {self.error}" if self.failed_workers else "on no worker"


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
    def count(state: HostingState) -> int:
        return sum(hosting.state == state for hosting in hostings)

    return VersionStanding(
        version=deployment.model_version,
        deployment_id=deployment.id,
        context_length=deployment.context_length,
        recipe=deployment.recipe,
        ready_workers=count(HostingState.READY),
        loading_workers=count(HostingState.LOADING),
        failed_workers=count(HostingState.FAILED),
        progress=max((hosting.progress for hosting in hostings if hosting.state == HostingState.LOADING), default=0.0),
        error=next((hosting.error for hosting in hostings if hosting.error), None),
    )
