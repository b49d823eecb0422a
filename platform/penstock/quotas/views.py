"""The route `GET /v1/quotas`."""

from typing import Any, Final, Literal

from apiflask import APIBlueprint
from flask import Response, jsonify
from pydantic import BaseModel, Field

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.jobs.services import count_waiting
from penstock.quotas.policies import Policy, Standing
from penstock.services import current_services

routes: Final = APIBlueprint("api_quotas", __name__, url_prefix="/v1/quotas", tag="Account")


class Rate(BaseModel):
    """What may be used in a minute."""

    limit: int | None = Field(description="Null is no limit")
    remaining: int | None = Field(description="What may be used at once now; null without a limit, or while unknown")
    reset_seconds: int | None = Field(description="Until there is as much as ever")


class QueuedJobs(BaseModel):
    """Jobs that may wait at once."""

    limit: int
    waiting: int


class OpenStreams(BaseModel):
    """Streams that may be open at once."""

    limit: int | None = Field(description="Null is no limit")


class QuotasDocument(BaseModel):
    """A tenant's limits in force and how they stand."""

    object: Literal["quotas"]
    requests_per_minute: Rate
    tokens_per_minute: Rate
    queued_jobs: QueuedJobs
    open_streams: OpenStreams


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, answer=QuotasDocument))
def get_quotas(principal: Principal) -> Response:
    """Get the limits in force for the tenant, and what is left of them."""
    services = current_services()
    policies = services.quotas.policies(principal.limits)
    standings = {
        standing.policy.name: standing for standing in services.quotas.standings(principal.tenant_id, principal.limits)
    }
    with services.database.transaction() as session:
        waiting = count_waiting(session, principal.tenant_id)
    return jsonify(
        {
            "object": "quotas",
            "requests_per_minute": _rate(policies.requests, standings),
            "tokens_per_minute": _rate(policies.tokens, standings),
            "queued_jobs": {"limit": policies.max_queued_jobs, "waiting": waiting},
            "open_streams": {"limit": policies.streams.quota if policies.streams else None},
        }
    )


def _rate(policy: Policy | None, standings: dict[str, Standing]) -> dict[str, Any]:
    standing = standings.get(policy.name) if policy else None
    return {
        "limit": policy.quota if policy else None,
        "remaining": standing.remaining if standing else None,
        "reset_seconds": standing.reset if standing else None,
    }
