"""The API's document (OpenAPI 3.1 at `/openapi.json`, made from the code) and its reference page at `/docs`."""

from typing import Any, Final

from apiflask import APIBlueprint, APIFlask
from flask import current_app, render_template_string
from pydantic import BaseModel

from penstock.compressions.schemas import EvaluateRequest, QuantizeRequest
from penstock.endpoints import SECURITY_SCHEME
from penstock.jobs.documents import EventDocument, FinalEvent, OutputDelta
from penstock.openai_api.problems import OpenAIError
from penstock.problems import Problem
from penstock.reference_page import TEMPLATE, operations

_DESCRIPTION: Final = (
    "Jobs for language models that outlive connections, workers and restarts. Submit a job, then poll it, wait for it, "
    "stream it, or have a webhook called. Errors are RFC 9457 problem documents with a stable `code`."
)
_CONFIG: Final[dict[str, Any]] = {
    "OPENAPI_VERSION": "3.1.0",
    "DESCRIPTION": _DESCRIPTION,
    "AUTO_SERVERS": False,
    "AUTO_200_RESPONSE": False,
    "AUTO_404_RESPONSE": False,
    "AUTO_VALIDATION_ERROR_RESPONSE": False,
    "AUTO_AUTH_ERROR_RESPONSE": False,
    "AUTO_OPERATION_ID": True,
    "SECURITY_SCHEMES": {
        SECURITY_SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "psk_<environment>_<secret>",
            "description": (
                "An API key. Its scopes are jobs:read, jobs:write, admin (both, and all of its tenant) and operator "
                "(everything)."
            ),
        }
    },
}
_FURTHER_KINDS: Final[tuple[type[BaseModel], ...]] = (QuantizeRequest, EvaluateRequest)
_UNROUTED_MODELS: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    OpenAIError,
    EventDocument,
    FinalEvent,
    OutputDelta,
    *_FURTHER_KINDS,
)


def install(app: APIFlask) -> None:
    """Have the document say what APIFlask cannot find out by itself."""
    app.config.update(_CONFIG)
    app.spec_processor(_complete)


def leave_out_pages(app: APIFlask) -> None:
    """Keep plain Flask blueprints out of the document; APIFlask trips over those that have a `before_request`."""
    for other in app.blueprints.values():
        if not isinstance(other, APIBlueprint):
            other.enable_openapi = False


def blueprint() -> APIBlueprint:
    """The reference page."""
    routes = APIBlueprint("reference", __name__, enable_openapi=False)
    routes.add_url_rule("/docs", view_func=reference, methods=["GET"])
    return routes


def reference() -> str:
    """Every operation with its parameters, body and answers, rendered here: no script, nothing from elsewhere."""
    spec = current_app._get_spec()  # type: ignore[attr-defined]  # APIFlask's own, which caches where `spec` does not
    return render_template_string(TEMPLATE, spec=spec, operations=operations(spec))


def _complete(spec: dict[str, Any]) -> dict[str, Any]:
    schemas = spec["components"].setdefault("schemas", {})
    for model in _UNROUTED_MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for item in spec["paths"].values():
        for operation in item.values():
            operation["parameters"] = [_plain_parameter(parameter) for parameter in operation["parameters"]]
    _add_kinds(spec)
    spec["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    return _with_shared_schemas(spec)


def _add_kinds(spec: dict[str, Any]) -> None:
    """A job's body is one of several, told apart by `kind`."""
    sent = spec["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    others = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in _FURTHER_KINDS]
    sent["schema"] = {"oneOf": [sent["schema"], *others]}


def _plain_parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null; its description is its own, not its schema's."""
    schema = dict(parameter["schema"])
    options = [option for option in schema.pop("anyOf", []) if option.get("type") != "null"]
    for option in options:
        schema |= option
    if schema.get("default") is None:
        schema.pop("default", None)
    described = {"description": schema.pop("description")} if "description" in schema else {}
    return parameter | described | {"schema": schema}


def _with_shared_schemas(spec: dict[str, Any]) -> dict[str, Any]:
    """APIFlask names a nested model after each that holds it (`JobPage.JobDocument`); ours have one name everywhere."""
    renamed: dict[str, Any] = _with_short_references(spec)
    schemas: dict[str, Any] = {}
    for name, schema in renamed["components"]["schemas"].items():
        short = name.rsplit(".", 1)[-1]
        if schemas.setdefault(short, schema) != schema:
            raise ValueError(f"two models are named {short}")
    renamed["components"]["schemas"] = dict(sorted(schemas.items()))
    return renamed


def _with_short_references(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _short(member) if key == "$ref" else _with_short_references(member) for key, member in value.items()
        }
    return [_with_short_references(member) for member in value] if isinstance(value, list) else value


def _short(reference: str) -> str:
    prefix, _, name = reference.rpartition("/")
    return f"{prefix}/{name.rsplit('.', 1)[-1]}"
