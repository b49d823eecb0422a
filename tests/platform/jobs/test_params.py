"""The parameters of a generation as a page and a program see them."""

import re

from penstock.jobs.params import JobParams, ResponseFormat, grammar_of
from penstock.jobs.schemas import JobRequest

from tests.conftest import ROOT


def test_every_parameter_is_documented() -> None:
    section = (ROOT / "docs/api.md").read_text().split("\n### Parameters\n")[1].split("\nA `response_format` is")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"params"}
    assert named == set(JobParams.model_fields)


def test_every_structure_that_is_documented_is_taken() -> None:
    page = (ROOT / "docs/api.md").read_text().split("\nA `response_format` is one of\n")[1]
    lines = page.split("```json\n")[1].split("```")[0].splitlines()
    formats = [ResponseFormat.model_validate_json(line) for line in lines]
    assert {each.type for each in formats} == set(ResponseFormat.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
    kinds = [grammar_of(each.stored())[0] for each in formats]
    assert kinds == ["json_schema", "json_schema", "regex", "choice", "lark"]


def test_a_schema_is_kept_to_the_letter() -> None:
    schema = {"properties": {"b": {"const": None}, "a": {"default": {"x": None}}}, "required": ["b"]}
    params = {"response_format": {"type": "json_schema", "schema": schema}}
    request = JobRequest.model_validate({"model": "m", "input": {"prompt": "x"}, "params": params})
    stored = request.stored_params()["response_format"]
    assert stored == params["response_format"]
    assert grammar_of(stored) == (
        "json_schema",
        '{"properties": {"b": {"const": null}, "a": {"default": {"x": null}}}, "required": ["b"]}',
    )
