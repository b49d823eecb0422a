"""The route `GET /v1/webhook-secret`."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify
from pydantic import BaseModel, Field

from penstock.auth.models import Tenant
from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services

routes: Final = APIBlueprint("api_account", __name__, url_prefix="/v1", tag="Account")


class WebhookSecret(BaseModel):
    """The secret that signs all webhooks of the tenant."""

    secret: str = Field(description="`whsec_` and base64; see Standard Webhooks 1.0 for how to check a signature")


@endpoint(routes, "GET", "/webhook-secret", Contract(scope=Scope.JOBS_WRITE, answer=WebhookSecret))
def get_webhook_secret(principal: Principal) -> Response:
    """Get the secret with which to check the signatures of webhooks."""
    with current_services().database.transaction() as session:
        response = jsonify({"secret": session.get_one(Tenant, principal.tenant_id).webhook_secret})
    response.headers["Cache-Control"] = "no-store"
    return response
