"""Whatever is wrong with a request, the answer is a problem document that says what and what would be right."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from penstock.auth.services import Scope
from penstock.db import Database
from penstock.ids import new_id
from penstock.problems import Problem
from penstock.registry.models import Deployment
from penstock.settings import Settings
from sqlalchemy import text

from tests.factories import make_deployment
from tests.platform.api.conftest import BODY, Caller

pytestmark = pytest.mark.usefixtures("deployment")

View = Callable[[], Any]


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json
    Problem.model_validate(problem)
    assert (problem["status"], problem["code"]) == (status, code)
    return problem


def send(caller: Caller, data: bytes | str, content_type: str = "application/json") -> Any:
    return caller.client.post(
        "/v1/jobs", data=data, content_type=content_type, headers={"Authorization": f"Bearer {caller.key}"}
    )


@pytest.mark.parametrize(
    "data", ["", "{", "nonsense", '{"model": NaNN}', '{"model": "\\ud800"}', "[" * 100_000, b"\xff"]
)
def test_a_body_that_is_not_json_is_refused(caller: Caller, data: bytes | str) -> None:
    assert "not JSON" in assert_problem(send(caller, data), 400, "invalid_json")["detail"]


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"bogus": 1}, "bogus", "leave it out"),
        ({"params": {"heat": 1}}, "params.heat", "leave it out"),
        ({"model": None}, "model", "a valid string"),
        ({"model": ""}, "model", "at least 1 character"),
        ({"input": []}, "input", "an object"),
        ({"input": {}}, "input", "exactly one of prompt, token_ids and messages"),
        ({"input": {"messages": [{"role": "robot", "content": ""}]}}, "input.messages.0.role", "'user'"),
        ({"params": {"temperature": "hot"}}, "params.temperature", "a valid number"),
        ({"params": {"temperature": 101}}, "params.temperature", "100.0 or less"),
        ({"params": {"max_tokens": True}}, "params.max_tokens", "a valid integer"),
        ({"params": {"max_tokens": 0}}, "params.max_tokens", "1 or more"),
        ({"params": {"min_tokens": 5, "max_tokens": 4}}, "params.min_tokens", "must not be above max_tokens"),
        ({"params": {"temperature": 0.0001}}, "params.temperature", "0 (greedy) or 0.001 to 100"),
        ({"params": {"n": 0}}, "params.n", "1 or more"),
        ({"params": {"n": 3, "best_of": 2}}, "params.best_of", "at least n"),
        ({"params": {"top_logprobs": 2}}, "params.top_logprobs", "needs logprobs"),
        ({"params": {"prompt_logprobs": 21}}, "params.prompt_logprobs", "20 or less"),
        ({"params": {"min_p": 1.5}}, "params.min_p", "1.0 or less"),
        ({"params": {"repetition_penalty": 0}}, "params.repetition_penalty", "more than 0"),
        ({"params": {"frequency_penalty": -3}}, "params.frequency_penalty", "-2.0 or more"),
        ({"params": {"logit_bias": {"x": 1}}}, "params.logit_bias", "a number such as 42"),
        ({"params": {"logit_bias": {"5": 101}}}, "params.logit_bias.5", "100.0 or less"),
        ({"params": {"logit_bias": {"768": 1}}}, "params.logit_bias", "0 to 767"),
        ({"params": {"stop_token_ids": [5, 768]}}, "params.stop_token_ids", "0 to 767"),
        ({"budget": {"tokens": 2}}, "budget.tokens", "3 or more"),
        ({"budget": {"tokens": 5}, "params": {"n": 4}}, "budget.tokens", "6 or more"),
        ({"class": "shadow"}, "class", "'interactive' or 'batch'"),
        ({"priority": 101}, "priority", "100 or less"),
        ({"deadline": "soon"}, "deadline", "a date and a time"),
        ({"webhook": {"url": "https://me:secret@example.com/"}}, "webhook.url", "user name or password"),
        ({"deadline": "2030"}, "deadline", "a date and a time"),
        ({"params": {"top_k": 2**40}}, "params.top_k", "2147483647"),
        ({"deadline": "2030-01-01T00:00:00"}, "deadline", "time zone"),
        ({"deadline": "9999-12-31T23:59:59-14:00"}, "deadline", "between the years"),
        ({"webhook": {"url": "ftp://x"}}, "webhook.url", "http or https"),
        ({"webhook": {"url": "nonsense"}}, "webhook.url", "http or https"),
        ({"webhook": {"url": "http://x", "events": ["job.done"]}}, "webhook.events.0", "'job.succeeded'"),
        ({"tags": ["x"] * 17}, "tags", "at most 16"),
        ({"tags": [""]}, "tags.0", "at least 1 character"),
        ({"metadata": {"k": 1}}, "metadata.k", "a valid string"),
        ({"input": {"prompt": "a\0b"}}, "input.prompt", "any other character"),
        ({"metadata": {"\0": "v"}}, "metadata.key", "any other character"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(
    caller: Caller, change: dict[str, Any], field: str, expected: str
) -> None:
    problem = assert_problem(caller.post("/v1/jobs", BODY | change), 422, "validation_failed")

    assert problem["field"] == field
    assert [error["field"] for error in problem["errors"]] == [field]
    assert expected in problem["errors"][0]["expected"]


@pytest.mark.parametrize(
    ("wanted", "field", "expected"),
    [
        ({"type": "prose"}, "type", "'json_schema', 'regex', 'lark' or 'choice'"),
        ({"type": "regex"}, "", "give regex and no other member"),
        ({"type": "regex", "regex": "a", "choice": ["b"]}, "", "give regex and no other member"),
        ({"type": "json_object", "schema": {}}, "", "give no other member"),
        ({"type": "json_schema", "schema": "{}"}, "schema", "an object"),
        ({"type": "json_schema", "schema": {"const": "x" * 100_000}}, "", "at most 100000 characters"),
        ({"type": "json_schema", "schema": {"type": "prose"}}, "schema", "Invalid type: prose"),
        ({"type": "json_schema", "schema": {"enum": []}}, "schema", "Unsatisfiable schema"),
        ({"type": "regex", "regex": "(a"}, "regex", "unclosed group"),
        ({"type": "regex", "regex": "[^\\s\\S]"}, "regex", "no text satisfies it"),
        ({"type": "lark", "lark": "start: nobody"}, "lark", 'unknown name: "nobody"'),
        ({"type": "choice", "choice": []}, "choice", "at least 1"),
    ],
)
@pytest.mark.usefixtures("deployment")
def test_a_structure_that_no_output_can_have_is_refused(
    caller: Caller, wanted: dict[str, Any], field: str, expected: str
) -> None:
    body = BODY | {"params": {"response_format": wanted}}
    problem = assert_problem(caller.post("/v1/jobs", body), 422, "validation_failed")
    assert problem["field"] == f"params.response_format{'.' if field else ''}{field}"
    assert expected in problem["detail"]
    assert problem["errors"][0]["field"] == problem["field"]


@pytest.mark.parametrize("clash", [{"ignore_eos": True}, {"min_tokens": 1}])
@pytest.mark.usefixtures("deployment")
def test_the_structure_alone_says_when_the_output_ends(caller: Caller, clash: dict[str, Any]) -> None:
    body = BODY | {"params": {"response_format": {"type": "json_object"}} | clash}
    problem = assert_problem(caller.post("/v1/jobs", body), 422, "validation_failed")
    assert problem["field"] == f"params.{next(iter(clash))}"


def test_every_wrong_field_is_listed(caller: Caller) -> None:
    problem = assert_problem(caller.post("/v1/jobs", {"priority": "high", "colour": 1}), 422, "validation_failed")

    assert {error["field"] for error in problem["errors"]} == {"model", "input", "priority", "colour"}
    assert "and 3 more" in problem["detail"]


def test_nothing_of_a_refused_job_is_kept(caller: Caller) -> None:
    caller.post("/v1/jobs", BODY | {"bogus": 1})

    assert caller.get("/v1/jobs").json["data"] == []


@pytest.mark.parametrize("model", ["absent", "tiny@challenger", "tiny:9", "tiny:"])
def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(caller: Caller, model: str) -> None:
    problem = assert_problem(caller.post("/v1/jobs", BODY | {"model": model}), 404, "model_not_found")

    assert (problem["field"], problem["available"]) == ("model", ["tiny"])


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(caller: Caller, deployment: Deployment) -> None:
    body = BODY | {"input": {"prompt": "word " * 250}, "params": {"max_tokens": 10}}
    problem = assert_problem(caller.post("/v1/jobs", body), 400, "context_length_exceeded")

    assert (problem["prompt_tokens"], problem["max_tokens"]) == (250, 10)
    assert problem["context_length"] == deployment.context_length == 256


def test_a_deadline_that_has_passed_is_refused(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", BODY | {"deadline": "2020-01-01T00:00:00Z"})

    assert assert_problem(answer, 422, "validation_failed")["field"] == "deadline"


def test_a_body_over_the_limit_is_refused(caller: Caller, settings: Settings) -> None:
    problem = assert_problem(send(caller, b" " * (settings.max_body_bytes + 1)), 413, "body_too_large")

    assert problem["limit_bytes"] == settings.max_body_bytes


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_kind_is_refused(caller: Caller, content_type: str) -> None:
    answer = send(caller, b'{"model": "tiny"}', content_type)

    assert "application/json" in assert_problem(answer, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/jobs/x/y", "/v1/jobs/%00"])
def test_an_unknown_path_is_not_found(caller: Caller, path: str) -> None:
    assert_problem(caller.get(path, Accept="text/html"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")],
)
@pytest.mark.parametrize("job_id", ["job_00000000000000000000000000", "nonsense", "é"])
def test_an_unknown_job_is_not_found(caller: Caller, method: str, path: str, job_id: str) -> None:
    assert_problem(caller.call(method, f"/v1/jobs/{job_id}{path}"), 404, "not_found")


def test_a_method_that_a_path_does_not_take_is_refused_with_those_it_does(caller: Caller) -> None:
    answer = caller.call("DELETE", "/v1/jobs")
    assert_problem(answer, 405, "method_not_allowed")

    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))


@pytest.fixture
def models_view(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[[View], None]:
    """Has another function answer `GET /v1/models`."""
    return lambda view: monkeypatch.setitem(app.view_functions, "api_models.get_models", view)


def test_a_crash_is_answered_without_its_reason(models_view: Callable[[View], None], caller: Caller) -> None:
    models_view(_crash)
    problem = assert_problem(caller.get("/v1/models"), 500, "internal_error")

    assert "secret" not in str(problem)


def test_a_missing_table_is_a_crash_of_ours_not_an_outage(
    models_view: Callable[[View], None], caller: Caller, database: Database
) -> None:
    models_view(lambda: _ask(database, "SELECT 1 FROM no_such_table"))

    assert_problem(caller.get("/v1/models"), 500, "internal_error")


def test_a_crash_of_a_statement_does_not_log_what_it_carried(
    models_view: Callable[[View], None], caller: Caller, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = new_id("prompt")
    models_view(lambda: _ask(database, "SELECT no_such(:p)", p=prompt))
    assert_problem(caller.get("/v1/models"), 500, "internal_error")
    logged = capsys.readouterr()

    assert "no_such" in logged.out
    assert prompt not in logged.out + logged.err


def test_a_browser_that_took_a_wrong_turn_gets_a_page(caller: Caller) -> None:
    answer = caller.client.get("/nothing<script>", headers={"Accept": "text/html"})

    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "<script>" not in answer.text


def test_a_key_without_the_scope_is_forbidden_by_name(make_caller: Callable[..., Caller]) -> None:
    reader = make_caller((Scope.JOBS_READ,))
    problem = assert_problem(reader.post("/v1/jobs", BODY), 403, "forbidden")

    assert problem["scope"] == "jobs:write"
    assert reader.get("/v1/jobs").status_code == 200


def test_admin_includes_the_other_scopes(make_caller: Callable[..., Caller]) -> None:
    assert make_caller((Scope.ADMIN,)).post("/v1/jobs", BODY).status_code == 202


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (None, "no API key was sent"),
        ("Basic abc", "must read `Bearer`"),
        ("Bearer", "must read `Bearer`"),
        ("Bearer abc", "not an API key"),
    ],
)
def test_without_a_key_the_answer_says_how_to_send_one(caller: Caller, header: str | None, says: str) -> None:
    answer = caller.client.get("/v1/jobs", headers={"Authorization": header} if header else {})

    assert says in assert_problem(answer, 401, "unauthenticated")["detail"]
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_key_is_asked_for_before_the_body_is_read(caller: Caller) -> None:
    assert_problem(caller.client.post("/v1/jobs", data="{", content_type="text/plain"), 401, "unauthenticated")


def test_a_model_without_a_champion_is_not_listed(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session, "second", champion=False)

    assert [model["id"] for model in caller.get("/v1/models").json["data"]] == ["tiny"]


def _crash() -> str:
    raise RuntimeError("the secret reason")


def _ask(database: Database, statement: str, **parameters: str) -> str:
    with database.transaction() as session:
        session.execute(text(statement), parameters)
    return ""
