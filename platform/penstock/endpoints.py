"""The one decorator of the API's views: it checks key, query and body before the view runs, and documents them.

A view gets what it asked for as keyword arguments: `principal`, then `headers`, `query` and `body` as their models.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, TypeVar

from apiflask import APIBlueprint
from flask import request
from pydantic import BaseModel, ValidationError

from penstock.auth.services import Principal, Scope
from penstock.db import DATABASE_AWAY
from penstock.errors import Forbidden, TenantSuspended, Unauthenticated, UnsupportedMediaType
from penstock.problems import PROBLEM_TYPE, Problem, body_too_large, explain_validation, refuse_field
from penstock.services import current_services
from penstock.strict_json import refuse_loose_json

View = Callable[..., Any]
Model = TypeVar("Model", bound=BaseModel)
SECURITY_SCHEME: Final = "apiKey"
_ALWAYS_POSSIBLE: Final = (401, 403, 429, 500, 503)
_ESCAPED_NUL: Final = b"\\u0000"
_notes: Final = APIBlueprint("notes", __name__, enable_openapi=False)  # never registered: its decorators annotate


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How errors look on a path, and the status of a body or query that is wrong."""

    model: str = Problem.__name__
    media_type: str = PROBLEM_TYPE
    invalid_status: int = 422


@dataclass(frozen=True, slots=True)
class Contract:
    """What a view reads and answers with. `problems` are its error statuses beyond those that every view may answer.

    `responses` holds further answers as OpenAPI response objects, by status; `errors` says how errors are told. A
    `form` is only described: its view reads it as it comes. `kinds` are the bodies that take the place of `body` where
    the member `kind` has one of these values.
    """

    scope: Scope
    answer: type[BaseModel] | None = None
    status: int = 200
    answer_headers: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    kinds: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    form: type[BaseModel] | None = None
    problems: Sequence[int] = ()
    responses: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    errors: ErrorForm = ErrorForm()


def endpoint(blueprint: APIBlueprint, method: str, path: str, contract: Contract) -> Callable[[View], View]:
    """Register the view under `method` and `path` of the blueprint, behind its contract."""

    def register(view: View) -> View:
        @wraps(_document(view, contract))
        def checked(**path_arguments: Any) -> Any:
            return view(principal=_authenticated(contract.scope), **_read(contract), **path_arguments)

        blueprint.add_url_rule(path, endpoint=view.__name__, view_func=checked, methods=[method])
        return view

    return register


def schema_of(model: type[BaseModel]) -> dict[str, str]:
    """A reference to the model's schema in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def read_body(model: type[Model], kinds: Mapping[str, type[Any]] = MappingProxyType({})) -> Model:
    """The request's JSON body as `model`, or as the one of its kind. Raises a `RequestError` that says what is wrong.

    With `kinds` the answer is of one of these models where `kind` says so.
    """
    if request.mimetype not in ("", "application/json") and not request.mimetype.endswith("+json"):
        raise UnsupportedMediaType(f"the body is {request.mimetype}; send it as application/json")
    data = request.get_data(cache=False)
    limit = current_services().settings.max_body_bytes
    if len(data) > limit:
        raise body_too_large(limit)
    try:
        parsed = _model_for(data, model, kinds).model_validate_json(data)
    except ValidationError as error:
        raise explain_validation(error) from None
    refuse_loose_json(data)
    if _ESCAPED_NUL in data:
        _refuse_nul(parsed.model_dump(by_alias=True))
    return parsed


def _model_for(data: bytes, model: type[Model], kinds: Mapping[str, type[Any]]) -> type[Model]:
    """Which model the body's `kind` asks for. Bodies that name no other kind are not parsed twice."""
    if not any(f'"{kind}"'.encode() in data for kind in kinds):
        return model
    try:
        sent = json.loads(data)
    except ValueError:  # told by the model
        return model
    kind = sent.get("kind") if isinstance(sent, dict) else None
    return kinds.get(kind, model) if isinstance(kind, str) else model


def read_query(model: type[Model]) -> Model:
    """The request's query as `model`. Unknown parameters are refused, and repeated ones.

    But where the name ends with `[]`: the values of such a one come joined by commas.
    """
    given: dict[str, str] = {}
    for name, values in request.args.lists():
        if len(values) > 1 and not name.endswith("[]"):
            raise refuse_field(name, "is given more than once", "give it once; several values go between commas")
        given[name] = ",".join(values)
        if "\0" in given[name]:
            raise refuse_field(name, "contains the character NUL", "it may hold any other character")
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        raise explain_validation(error) from None


def read_headers(model: type[Model]) -> Model:
    """The request's headers as `model`, whose field `last_event_id` is the header `Last-Event-ID`."""
    wanted = {name: request.headers.get(name.replace("_", "-")) for name in model.model_fields}
    try:
        return model.model_validate_strings({name: value for name, value in wanted.items() if value is not None})
    except ValidationError as error:
        raise explain_validation(error) from None


def _authenticated(scope: Scope) -> Principal:
    services = current_services()
    principal = services.keys.principal(_presented_key())
    services.quotas.admit_request(principal.tenant_id, principal.limits)
    if not principal.may(scope):
        has = ", ".join(sorted(principal.scopes)) or "none"
        raise Forbidden(
            f"this needs a key with the scope {scope.value}; the one that was sent has: {has}", scope=scope.value
        )
    return principal


def caller_remains() -> Callable[[], bool]:
    """Tells, whenever it is asked, whether this request's key is good still: for answers that have no end of their own.

    While PostgreSQL is away nobody can say, and the caller remains.
    """
    keys, presented = current_services().keys, _presented_key()

    def remains() -> bool:
        try:
            keys.principal(presented)
        except DATABASE_AWAY:
            return True
        except (Unauthenticated, TenantSuspended):
            return False
        return True

    return remains


def _presented_key() -> str:
    header = request.headers.get("Authorization")
    if header is None:
        raise Unauthenticated("no API key was sent: send it as `Authorization: Bearer psk_...`")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("the header Authorization must read `Bearer`, a space, and the API key")
    return key.strip()


def _refuse_nul(value: Any, path: tuple[str, ...] = ()) -> None:
    # PostgreSQL keeps every character but this one.
    if isinstance(value, str) and "\0" in value:
        raise refuse_field(".".join(path), "contains the character NUL", "it may hold any other character")
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, member in members:
        _refuse_nul(str(name), (*path, "key"))
        _refuse_nul(member, (*path, str(name)))


def _read(contract: Contract) -> dict[str, BaseModel]:
    given: dict[str, BaseModel] = {}
    if contract.headers is not None:
        given["headers"] = read_headers(contract.headers)
    if contract.query is not None:
        given["query"] = read_query(contract.query)
    if contract.body is not None:
        given["body"] = read_body(contract.body, contract.kinds)
    return given


def _document(view: View, contract: Contract) -> View:
    """Annotate the view with APIFlask's decorators; their wrappers, which parse and serialise, are dropped."""
    annotated: View = _notes.doc(
        security=[{SECURITY_SCHEME: [contract.scope.value]}],
        responses=_problem_responses(contract) | dict(contract.responses),
    )(view)
    read = {"headers": contract.headers, "query": contract.query, "json": contract.body, "files": contract.form}
    for location, model in read.items():
        if model is not None:
            _notes.input(model, location=location)(annotated)
    if contract.answer is not None:
        phrase = HTTPStatus(contract.status).phrase
        _notes.output(contract.answer, contract.status, phrase, headers=contract.answer_headers)(annotated)
    return annotated


def _problem_responses(contract: Contract) -> dict[int, dict[str, Any]]:
    form = contract.errors
    invalid = {form.invalid_status} if contract.query or contract.body else set()
    statuses = {*contract.problems, *_ALWAYS_POSSIBLE} | invalid
    content = {form.media_type: {"schema": {"$ref": f"#/components/schemas/{form.model}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}
