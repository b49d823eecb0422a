"""Errors on their way out: each is an RFC 9457 problem document, also those that Flask, PostgreSQL and Redis raise."""

import re
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Response, current_app, json, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from penstock import errors
from penstock.db import DATABASE_AWAY
from penstock.errors import PenstockError
from penstock.logs import get_logger

PROBLEM_TYPE: Final = "application/problem+json"
API_PREFIX: Final = "/v1"
_RETRY_SECONDS: Final = 1
log = get_logger(__name__)


class FieldProblem(BaseModel):
    """One field that is wrong."""

    field: str = Field(description="Where, dotted as in the body; empty for the body as a whole")
    message: str = Field(description="What is wrong")
    expected: str = Field(description="What would be right")


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable and for programs; members beyond these depend on it."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = Field(default=None, description="The place at fault")
    errors: list[FieldProblem] | None = Field(default=None, description="With `validation_failed`: every wrong field")


def install_problem_handlers(app: Flask) -> None:
    """Answer every error with its problem document.

    Outside the API browsers get a page instead, where the application has one: `extensions["penstock.error_page"]`, a
    function from the problem document to HTML.
    """
    app.register_error_handler(PenstockError, _on_penstock_error)
    app.register_error_handler(HTTPException, _on_http_error)
    for unavailable in DATABASE_AWAY:
        app.register_error_handler(unavailable, _on_database_error)
    app.register_error_handler(RedisError, _on_redis_error)
    app.register_error_handler(Exception, _on_unexpected_error)


def explain_validation(error: ValidationError) -> PenstockError:
    """A Pydantic error in our words: which field, what is wrong, what would be right."""
    details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        return errors.InvalidJson(f"the body is not JSON: {details[0]['ctx']['error']}")
    problems = [_explain(detail) for detail in details]
    first = problems[0]
    place = first["field"] or "the body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return errors.ValidationFailed(
        f"{place}: {first['message']}; {first['expected']}{more}", field=first["field"] or None, errors=problems
    )


def refuse_field(field: str, message: str, expected: str) -> errors.ValidationFailed:
    """A validation error of one field, shaped like those of Pydantic's."""
    problem = FieldProblem(field=field, message=message, expected=expected).model_dump()
    return errors.ValidationFailed(f"{field}: {message}; {expected}", field=field, errors=[problem])


def body_too_large(limit: int) -> errors.BodyTooLarge:
    """The error for a body of more than `limit` bytes."""
    return errors.BodyTooLarge(f"the body may have at most {limit} bytes", limit_bytes=limit)


def _explain(detail: ErrorDetails) -> dict[str, str]:
    field = ".".join(str(part) for part in detail["loc"] if not _names_a_kind(part))
    message, expected = _in_words(detail)
    return {"field": field, "message": message, "expected": expected}


def _names_a_kind(part: str | int) -> bool:
    """Whether it says which member of a union was taken, such as (message), and is no place in the body."""
    return isinstance(part, str) and part.startswith("(")


def _in_words(detail: ErrorDetails) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    explain = _EXPLANATIONS.get(kind)
    if explain is not None:
        return explain(context)
    if kind == "value_error":
        return "is not acceptable", str(context["error"])
    if kind.endswith(("_type", "_parsing", "_from_date_parsing")):
        return f"has the wrong type ({_type_of(detail['input'])})", _lower(detail["msg"].removeprefix("Input "))
    return "is not acceptable", _lower(detail["msg"].removeprefix("Input "))


def _items(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_Explanation = Callable[[dict[str, Any]], tuple[str, str]]
_EXPLANATIONS: Final[dict[str, _Explanation]] = {
    "missing": lambda _: ("is missing", "it must be given"),
    "extra_forbidden": lambda _: ("is not a known field", "leave it out, or see /docs for the fields that there are"),
    "literal_error": lambda context: ("is none of the allowed values", f"it must be {context['expected']}"),
    "enum": lambda context: ("is none of the allowed values", f"it must be {context['expected']}"),
    "greater_than_equal": lambda context: ("is too small", f"it must be {context['ge']} or more"),
    "greater_than": lambda context: ("is too small", f"it must be more than {context['gt']}"),
    "less_than_equal": lambda context: ("is too large", f"it must be {context['le']} or less"),
    "less_than": lambda context: ("is too large", f"it must be less than {context['lt']}"),
    "string_too_short": lambda context: (
        "is too short",
        f"it must have at least {_items(context['min_length'], 'character')}",
    ),
    "string_too_long": lambda context: (
        "is too long",
        f"it may have at most {_items(context['max_length'], 'character')}",
    ),
    "too_short": lambda context: ("has too few members", f"it must have at least {context['min_length']}"),
    "too_long": lambda context: ("has too many members", f"it may have at most {context['max_length']}"),
    "url_parsing": lambda _: ("is not an address", "it must be an absolute http or https URL"),
    "url_scheme": lambda _: ("has a scheme that is not supported", "it must be an http or https URL"),
}


_JSON_TYPES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def _type_of(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "a value of another kind")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _on_penstock_error(error: PenstockError) -> Response:
    if error.status >= 500:
        log.error("request.failed", code=error.code, path=request.path, error=error.message)
    return _answer(error)


def _on_http_error(error: HTTPException) -> Response | HTTPException:
    if error.response is not None or error.code is None or error.code < 400:
        return error  # a redirect, or a response that somebody made on purpose
    headers = {}
    if isinstance(error, WerkzeugMethodNotAllowed) and error.valid_methods:
        headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return _answer(_from_http(error), headers)


def _from_http(error: HTTPException) -> PenstockError:
    known: dict[int, Callable[[], PenstockError]] = {
        404: lambda: errors.NotFound(f"there is nothing at {request.path}"),
        405: lambda: errors.MethodNotAllowed(f"{request.path} does not take {request.method}"),
        413: lambda: body_too_large(current_app.config["MAX_CONTENT_LENGTH"] - 1),
        415: lambda: errors.UnsupportedMediaType("send the body as application/json"),
    }
    make = known.get(error.code or 500)
    return make() if make else _OtherHttpError(error)


class _OtherHttpError(errors.RequestError):
    """An HTTP error of the framework that has no class of ours, such as 400 for a malformed header."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__(_lower(error.description or error.name))
        self._http = error

    def problem(self) -> dict[str, Any]:
        code = re.sub(r"[^a-z0-9]+", "_", self._http.name.lower())
        return super().problem() | {
            "type": f"https://penstock.dev/errors/{code}",
            "title": self._http.name,
            "status": self._http.code,
            "code": code,
        }


def _on_database_error(error: Exception) -> Response:
    said = str(error).partition("\n")[0]  # of the server's words; what stands in rows is never among them
    log.error("database.unavailable", path=request.path, error=type(error).__name__, detail=said)
    return _answer(
        errors.ServiceUnavailable("the database does not answer; try again in a moment"),
        {"Retry-After": str(_RETRY_SECONDS)},
    )


def _on_redis_error(error: Exception) -> Response:
    log.error("redis.unavailable", path=request.path, error=type(error).__name__)
    return _answer(
        errors.ServiceUnavailable("Redis does not answer; try again in a moment"), {"Retry-After": str(_RETRY_SECONDS)}
    )


def _on_unexpected_error(error: Exception) -> Response:
    log.exception("request.crashed", path=request.path, error=type(error).__name__)
    return _answer(PenstockError("the request could not be handled; the server's log says why"))


def _answer(error: PenstockError, headers: dict[str, str] | None = None) -> Response:
    problem = error.problem()
    response = Response(status=problem["status"])
    page = current_app.extensions.get("penstock.error_page")
    if page is not None and _is_for_a_browser():
        response.mimetype = "text/html"
        response.set_data(page(problem))
    else:
        response.headers["Content-Type"] = PROBLEM_TYPE
        response.set_data(json.dumps(problem))
    if "retry_after" in error.extra:
        response.headers["Retry-After"] = str(error.extra["retry_after"])
    response.headers.update(headers or {})
    if isinstance(error, errors.Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Bearer realm="penstock"'
    return response


def _is_for_a_browser() -> bool:
    inside = request.path == API_PREFIX or request.path.startswith(f"{API_PREFIX}/")
    return not inside and request.accept_mimetypes.best_match([PROBLEM_TYPE, "text/html"]) == "text/html"
