"""The route `GET /v1/calibration`."""

from typing import Any, Final, Literal

from apiflask import APIBlueprint
from flask import Response, jsonify
from pydantic import BaseModel, ConfigDict, Field

from penstock.auth.permits import refuse_model, refuse_scope
from penstock.auth.services import Principal, Scope
from penstock.compressions.schemas import MOST_TEXTS
from penstock.compressions.texts import texts_of_jobs
from penstock.endpoints import Contract, endpoint
from penstock.routing.services import model_name_of
from penstock.services import current_services

routes: Final = APIBlueprint("api_calibration", __name__, url_prefix="/v1/calibration", tag="Models")


class CalibrationQuery(BaseModel):
    """Whose text, and how much of it."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=200, description="The model whose jobs are meant, by its name")
    count: int = Field(default=64, ge=1, le=MOST_TEXTS, description="Of so many jobs at most, the newest")
    all_tenants: bool = Field(default=False, description="Jobs of every tenant; needs the scope operator")


class CalibrationText(BaseModel):
    """What one job was asked and wrote: `messages`, the answer last, or the whole `text`."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]] | None = None
    text: str | None = None


class CalibrationTexts(BaseModel):
    """Each is a line of a file that `penstock quantize --calibration` takes."""

    object: Literal["list"]
    data: list[CalibrationText]


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, query=CalibrationQuery, answer=CalibrationTexts))
def get_calibration(principal: Principal, query: CalibrationQuery) -> Response:
    """Get the text of the model's newest succeeded jobs, to calibrate a smaller version of it by."""
    name = model_name_of(query.model)
    refuse_model(principal, name)
    if query.all_tenants:
        refuse_scope(principal, Scope.OPERATOR, "all_tenants")
    tenant_id = None if query.all_tenants else principal.tenant_id
    with current_services().database.transaction() as session:
        texts = texts_of_jobs(session, name, tenant_id, query.count)
    return jsonify({"object": "list", "data": [text.to_calibrate for text in texts]})
