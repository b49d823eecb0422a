"""Errors in OpenAI's form, on its paths: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from flask import Response, json, request
from pydantic import BaseModel, Field

from penstock.errors import JobFailed, JobStopped, PenstockError
from penstock.problems import PROBLEM_TYPE

PREFIXES: Final = ("/v1/chat/", "/v1/completions", "/v1/responses", "/v1/files", "/v1/batches")
_CODES: Final = {
    "unauthenticated": "invalid_api_key",
    "quota_exceeded": "rate_limit_exceeded",
    "validation_failed": "invalid_value",
}
_STATUSES: Final = {422: 400}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_FINAL: Final = frozenset({JobFailed.code, JobStopped.code})
"""Their job is over: OpenAI's clients, which repeat a 409 and a 500 by themselves, are told not to."""


class OpenAIErrorDetail(BaseModel):
    """What is wrong."""

    message: str = Field(description="In words, with what would be right")
    type: str
    param: str | None = Field(description="The field at fault")
    code: str


class OpenAIError(BaseModel):
    """An error as OpenAI tells it."""

    error: OpenAIErrorDetail


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Have errors about a job's fields name those of the call: `names` where they differ by more than `params.`."""
    try:
        yield
    except PenstockError as error:
        if error.field is not None:
            theirs = names.get(error.field, error.field.removeprefix("params."))
            error.message = error.message.replace(f"{error.field}:", f"{theirs}:")
            error.field = theirs
        for one in error.extra.get("errors", ()):
            one["field"] = names.get(one["field"], one["field"].removeprefix("params."))
        raise


def error_document(problem: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's form of a problem document."""
    status, code = problem["status"], problem["code"]
    usual = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": problem["detail"],
            "type": _TYPES.get(status, usual),
            "param": problem.get("field"),
            "code": _CODES.get(code, code),
        }
    }


def in_openai_form(response: Response) -> Response:
    """After each request: a problem document on one of OpenAI's paths becomes OpenAI's, unless it is asked for."""
    if response.mimetype != PROBLEM_TYPE or not request.path.startswith(PREFIXES):
        return response
    if PROBLEM_TYPE in request.headers.get("Accept", ""):
        return response
    problem = json.loads(response.get_data())
    response.status_code = _STATUSES.get(problem["status"], problem["status"])
    response.mimetype = "application/json"
    response.set_data(json.dumps(error_document(problem)))
    if problem["code"] in _FINAL:
        response.headers["X-Should-Retry"] = "false"
    return response
