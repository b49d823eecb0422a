"""The route `GET /v1/models`."""

from typing import Any, Final, Literal

from apiflask import APIBlueprint
from flask import Response, jsonify
from pydantic import BaseModel, Field

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.routing.catalogue import list_models
from penstock.services import current_services

routes: Final = APIBlueprint("api_models", __name__, url_prefix="/v1/models", tag="Models")


class IncomingVersion(BaseModel):
    """The version that is to serve next."""

    version: str
    state: str = Field(description="How far it has come, or why it cannot be loaded")


class ModelDocument(BaseModel):
    """A model that takes jobs."""

    id: str = Field(description="The name that jobs ask for; also as name@challenger or name:version")
    object: Literal["model"]
    created: int = Field(description="When its version was registered, in Unix seconds")
    owned_by: str
    version: str = Field(description="The version that serves its jobs now")
    champion_since: str
    challenger_version: str | None
    context_length: int = Field(description="Tokens of prompt and output together")
    recipe: dict[str, Any] = Field(description="How the version was quantized")
    ready: bool = Field(description="Whether a worker would take a job now; else jobs wait until one does")
    state: str = Field(description="The same in words, with the reason")
    incoming: IncomingVersion | None = Field(description="Takes over once a worker has it ready")
    reason: str = Field(description="Why this version serves, and what is going on")


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelDocument]


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, answer=ModelList))
def get_models(principal: Principal) -> Response:
    """List the models that the key may use, the version that serves each, and whether it is ready."""
    with current_services().database.transaction() as session:
        models = list_models(session)
    return jsonify({"object": "list", "data": [model for model in models if principal.may_use(model["id"])]})
