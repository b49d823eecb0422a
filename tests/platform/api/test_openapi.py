"""The OpenAPI document says what the code does, and the reference page shows it."""

import json
import re
from typing import Any

import pytest
from flask import Flask
from penstock.auth.services import Scope
from penstock.openai_api.problems import PREFIXES

from tests.conftest import ROOT


@pytest.fixture
def spec(app: Flask) -> dict[str, Any]:
    answer: Any = app.test_client().get("/openapi.json")
    document: dict[str, Any] = answer.json
    return document


def references(value: Any) -> set[str]:
    return set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(value)))


def error_form(path: str) -> tuple[str, str]:
    """OpenAI's paths have errors of their own form."""
    theirs = path.startswith(PREFIXES)
    return ("application/json", "OpenAIError") if theirs else ("application/problem+json", "Problem")


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(spec: dict[str, Any]) -> None:
    assert spec["openapi"].startswith("3.1")
    for reference in references(spec):
        part: Any = spec
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_every_route_of_the_api_is_documented(app: Flask, spec: dict[str, Any]) -> None:
    routed = {
        (re.sub(r"<([^>]+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/v1/")
    }

    assert routed == {(path, method) for path, item in spec["paths"].items() for method in item}
    assert ("/v1/jobs/{job_id}/events", "get") in routed


def test_every_route_is_in_the_guide(spec: dict[str, Any]) -> None:
    guide = (ROOT / "docs/api.md").read_text()
    for path in spec["paths"]:
        assert re.search(rf"{re.escape(re.sub(r'{[^}]+}', '{id}', path))}[`?,]", guide), path


def test_every_operation_needs_a_key_and_answers_problems(spec: dict[str, Any]) -> None:
    assert spec["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path, item in spec["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            ((scopes,),) = [list(need.values()) for need in operation["security"]]
            assert scopes[0] in set(Scope)
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    media_type, model = error_form(path)
                    assert references(answer["content"][media_type]) == {f"#/components/schemas/{model}"}


def test_submission_has_real_schemas(spec: dict[str, Any]) -> None:
    submit = spec["paths"]["/v1/jobs"]["post"]
    body = submit["requestBody"]["content"]["application/json"]["schema"]
    request = spec["components"]["schemas"]["JobRequest"]

    kinds = ("JobRequest", "QuantizeRequest", "EvaluateRequest")
    assert body == {"oneOf": [{"$ref": f"#/components/schemas/{kind}"} for kind in kinds]}
    for kind in kinds[1:]:
        assert {"kind", "model"} < set(spec["components"]["schemas"][kind]["required"])
    assert request["additionalProperties"] is False
    assert set(request["required"]) == {"model", "input"}
    assert references(submit["responses"]["202"]) == {"#/components/schemas/JobDocument"}
    assert "location" in submit["responses"]["202"]["headers"]
    assert {"name": "prefer", "in": "header"}.items() <= submit["parameters"][0].items()


def test_the_stream_is_described_with_its_events(spec: dict[str, Any]) -> None:
    answer = spec["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]

    assert "text/event-stream" in answer["content"]
    for model in ("OutputDelta", "EventDocument", "FinalEvent"):
        assert model in answer["description"]
        assert model in spec["components"]["schemas"]


def test_no_parameter_claims_to_take_null(spec: dict[str, Any]) -> None:
    parameters = [
        parameter
        for item in spec["paths"].values()
        for operation in item.values()
        for parameter in operation["parameters"]
    ]

    assert "null" not in json.dumps(parameters)
    assert any(parameter["name"] == "status" and parameter["description"] for parameter in parameters)


def test_the_reference_page_shows_every_operation_and_loads_nothing_from_elsewhere(
    app: Flask, spec: dict[str, Any]
) -> None:
    page = app.test_client().get("/docs").text

    for path, item in spec["paths"].items():
        for method in item:
            assert f"{method.upper()} {path}" in page
    assert "params.temperature" in page
    assert "holds the request up to N seconds" in page
    assert "input.messages[].role" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "<script" not in page
