"""How far live workers have come with a deployment."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from penstock.registry.hosting_services import HostingState, live_hostings
from penstock.registry.models import Deployment, Hosting
from penstock.routing.succession import Candidate, Readiness

_ORDER = (HostingState.READY, HostingState.LOADING, HostingState.FAILED)


def standing_of(session: Session, deployment: Deployment) -> Candidate:
    """The deployment by what live workers say of it now."""
    return candidate_of(deployment, live_hostings(session, [deployment.id]))


def candidate_of(deployment: Deployment, hostings: Sequence[Hosting]) -> Candidate:
    """The deployment by what these say: it has come as far as on the worker that has come farthest."""
    states = {hosting.state for hosting in hostings}
    state = next((state for state in _ORDER if state in states), None)
    return Candidate(
        deployment.id,
        deployment.model_version,
        Readiness(state.value) if state else Readiness.UNKNOWN,
        proven=deployment.first_ready_at is not None,
        error=next((hosting.error for hosting in hostings if hosting.error), None),
    )
