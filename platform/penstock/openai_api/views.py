"""The routes that OpenAI's clients call."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify, request
from pydantic import BaseModel

from penstock.auth.services import Principal, Scope
from penstock.connection import watch
from penstock.endpoints import Contract, ErrorForm, endpoint, schema_of
from penstock.errors import ModelNotFound, ServiceUnavailable
from penstock.idempotency.services import KeyedRequest, keyed_request
from penstock.jobs.queries import CallHeaders
from penstock.jobs.views import traceparent_of
from penstock.openai_api.calls import Call, ClientGone, Submission
from penstock.openai_api.chat_request import ChatRequest
from penstock.openai_api.completion_request import CompletionRequest
from penstock.openai_api.documents import ChatCompletion, TextCompletion
from penstock.openai_api.forms import ChatForm, CompletionForm, Form, names_tokens
from penstock.openai_api.problems import OpenAIError, fields_named
from penstock.openai_api.stream import Telling
from penstock.routing.catalogue import list_models
from penstock.routing.views import ModelDocument
from penstock.services import Services, current_services
from penstock.streaming import STREAM_HEADERS

routes: Final = APIBlueprint("api_openai", __name__, url_prefix="/v1", tag="OpenAI")
CLIENT_GONE_STATUS: Final = 499  # nginx's, for its logs and ours: nobody reads it
_HOW_IT_IS_CALLED: Final = ErrorForm(OpenAIError.__name__, "application/json", invalid_status=400)


def _contract(body: type[BaseModel], answer: type[BaseModel]) -> Contract:
    both = {
        "application/json": {"schema": schema_of(answer)},
        "text/event-stream": {"schema": {"type": "string"}, "example": 'data: {"choices": [...]}\n\ndata: [DONE]\n\n'},
    }
    return Contract(
        scope=Scope.JOBS_WRITE,
        headers=CallHeaders,
        body=body,
        answer=answer,
        problems=(400, 404, 409, 413, 415),
        responses={200: {"description": "The answer; with `stream` its chunks, as they are made", "content": both}},
        errors=_HOW_IT_IS_CALLED,
    )


@endpoint(routes, "POST", "/chat/completions", _contract(ChatRequest, ChatCompletion))
def create_chat_completion(principal: Principal, headers: CallHeaders, body: ChatRequest) -> Response:
    """Answer a chat, as OpenAI's API does.

    The call is a job, which is cancelled when the connection closes, unless an Idempotency-Key came with it.
    """
    return _answer(principal, headers, body)


@endpoint(routes, "POST", "/completions", _contract(CompletionRequest, TextCompletion))
def create_completion(principal: Principal, headers: CallHeaders, body: CompletionRequest) -> Response:
    """Complete one or more prompts, as OpenAI's API does.

    Each prompt is a job; they are cancelled when the connection closes, unless an Idempotency-Key came with them.
    """
    return _answer(principal, headers, body)


@endpoint(routes, "GET", "/models/<model>", Contract(scope=Scope.JOBS_READ, answer=ModelDocument, problems=(404,)))
def get_model(principal: Principal, model: str) -> Response:
    """Get one of the models that the key may use, by its name."""
    with current_services().database.transaction() as session:
        known = {entry["id"]: entry for entry in list_models(session) if principal.may_use(entry["id"])}
    if model not in known:
        raise ModelNotFound(f"no model {model!r}", field="model", available=sorted(known))
    return jsonify(known[model])


def _answer(principal: Principal, headers: CallHeaders, body: ChatRequest | CompletionRequest) -> Response:
    asking = _Asking(current_services(), principal, headers, body)
    call = Call(asking.services, principal, watch(request.environ))
    with ExitStack() as held:
        held.callback(take_place(asking.services))
        held.callback(call.abandon)
        response = _streamed(asking, call, held) if body.stream else _whole(asking, call)
    if call.jobs:
        response.headers["X-Request-Id"] = call.jobs[0].id
    return response


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks for what."""

    services: Services
    principal: Principal
    headers: CallHeaders
    body: ChatRequest | CompletionRequest

    def submit(self, call: Call) -> Form:
        """Submit the call's jobs; the form in which they are told."""
        traceparent = traceparent_of(self.headers.traceparent)
        with fields_named(self.body.field_names()):
            call.submit(Submission(self.body.jobs(), self._key(), traceparent, names_tokens(self.body)))
        if isinstance(self.body, ChatRequest):
            return ChatForm(self.body, call.jobs, call.vocabularies)
        return CompletionForm(self.body, call.jobs, call.vocabularies)

    def _key(self) -> KeyedRequest | None:
        return keyed_request(
            self.principal.tenant_id, self.headers.idempotency_key, lambda: [request.path, self._asked()]
        )

    def _asked(self) -> dict[str, Any]:
        # Whether it is streamed is no part of what is asked for: either way it is the same answer.
        return self.body.model_dump(mode="json", exclude_unset=True, exclude={"stream", "stream_options"})


def _whole(asking: _Asking, call: Call) -> Response:
    form = asking.submit(call)
    try:
        return jsonify(form.answer(call.wait()))
    except ClientGone:
        return Response(status=CLIENT_GONE_STATUS)


def _streamed(asking: _Asking, call: Call, held: ExitStack) -> Response:
    principal = asking.principal
    batches, end = asking.services.quotas.admit_stream(principal.tenant_id, principal.limits, call.follow())
    held.callback(end)
    form = asking.submit(call)
    lines = Telling(form, len(call.jobs), asking.body.counts_usage).lines(batches)
    response = Response(lines, mimetype="text/event-stream", headers=STREAM_HEADERS)
    response.call_on_close(held.pop_all().close)
    return response


def take_place(services: Services) -> Callable[[], None]:
    """A place to wait in, and what leaves it. Raises `ServiceUnavailable` when none is free."""
    leave = services.waiting_places.take()
    if leave is None:
        raise ServiceUnavailable(
            f"{services.waiting_places.count} calls wait for their end, which is this server's limit; try again soon",
            retry_after=1,
        )
    return leave
