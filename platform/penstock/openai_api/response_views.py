"""`/v1/responses`, after the Open Responses specification (2026-04-24) and as OpenAI's client calls it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify, request
from sqlalchemy.orm import Session

from penstock.auth.services import Principal, Scope
from penstock.connection import watch
from penstock.endpoints import Contract, ErrorForm, endpoint, schema_of
from penstock.errors import JobAlreadyFinished, ValidationFailed
from penstock.idempotency.services import keyed_request
from penstock.jobs import services as jobs
from penstock.jobs.details import with_newest_output
from penstock.jobs.models import Job
from penstock.jobs.output import assemble_output
from penstock.jobs.presentation import job_document
from penstock.jobs.queries import CallHeaders
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, JobStream, Sources, StreamItem, kept_entries
from penstock.jobs.views import announce, traceparent_of
from penstock.jobs.waiting import wait_until_final
from penstock.openai_api import response_store as store
from penstock.openai_api.calls import Call, ClientGone, Submission
from penstock.openai_api.problems import OpenAIError, fields_named
from penstock.openai_api.response_documents import (
    DeletedResponse,
    InputItemPage,
    ItemsQuery,
    ResponseDocument,
    RetrieveQuery,
)
from penstock.openai_api.response_forms import ResponseEvents, ResponseForm
from penstock.openai_api.response_request import ResponseRequest
from penstock.openai_api.response_stream import event_lines
from penstock.openai_api.views import CLIENT_GONE_STATUS, take_place
from penstock.registry.models import Deployment
from penstock.services import Services, current_services
from penstock.streaming import STREAM_HEADERS

routes: Final = APIBlueprint("api_responses", __name__, url_prefix="/v1/responses", tag="OpenAI")
_FROM_THE_BEGINNING: Final = -1
_CANCEL_SECONDS: Final = 10  # how long a cancel waits for the worker to stop at its next token
_ERRORS: Final = ErrorForm(OpenAIError.__name__, "application/json", invalid_status=400)
_EITHER: Final = {
    200: {
        "description": "The response; with `stream` its events, the last of them followed by `[DONE]`",
        "content": {
            "application/json": {"schema": schema_of(ResponseDocument)},
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'event: response.created\ndata: {"type": "response.created", "sequence_number": 0, ...}\n\n',
            },
        },
    }
}


@endpoint(
    routes,
    "POST",
    "",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=CallHeaders,
        body=ResponseRequest,
        answer=ResponseDocument,
        problems=(400, 404, 409, 413, 415),
        responses=_EITHER,
        errors=_ERRORS,
    ),
)
def create_response(principal: Principal, headers: CallHeaders, body: ResponseRequest) -> Response:
    """Answer a conversation.

    The response is a job, which is cancelled when the connection closes, unless `background` is true or an
    Idempotency-Key came with it. A stored one can be fetched, streamed again from any event on, cancelled, and gone
    on with by `previous_response_id`.
    """
    asking = _Asking(current_services(), principal, headers, body)
    if body.background and not body.stream:
        call = Call(asking.services, principal, client_gone=lambda: False)
        form = asking.submit(call)
        return jsonify(form.document(job_document(call.jobs[0])))
    call = Call(asking.services, principal, watch(request.environ))
    with ExitStack() as held:
        held.callback(take_place(asking.services))
        held.callback(call.abandon)
        return _streamed(asking, call, held) if body.stream else _whole(asking, call)


@endpoint(
    routes,
    "GET",
    "/<response_id>",
    Contract(
        scope=Scope.JOBS_READ,
        query=RetrieveQuery,
        answer=ResponseDocument,
        problems=(400, 404),
        responses=_EITHER,
        errors=_ERRORS,
    ),
)
def get_response(principal: Principal, query: RetrieveQuery, response_id: str) -> Response:
    """Get a stored response as it stands, or its events from any one on."""
    services = current_services()
    with services.database.transaction() as session:
        response, job = store.find(session, principal.tenant_id, response_id)
        form = ResponseForm(response.told, _vocabulary(services, session, job))
        document = _with_checkpoint(session, job)
    if query.stream:
        return _told_again(services, principal, form, document, query.starting_after)
    return jsonify(form.document(with_newest_output(document, services.journal)))


@endpoint(
    routes,
    "POST",
    "/<response_id>/cancel",
    Contract(scope=Scope.JOBS_WRITE, answer=ResponseDocument, problems=(404,), errors=_ERRORS),
)
def cancel_response(principal: Principal, response_id: str) -> Response:
    """Cancel a response. What it has written is kept; one that is over stays as it is."""
    services = current_services()
    with services.database.transaction() as session:
        response, job = store.find(session, principal.tenant_id, response_id)
        form = ResponseForm(response.told, _vocabulary(services, session, job))
    job = wait_until_final(services, _cancelled(services, job), _CANCEL_SECONDS)
    return jsonify(form.document(job_document(job)))


@endpoint(
    routes,
    "DELETE",
    "/<response_id>",
    Contract(scope=Scope.JOBS_WRITE, answer=DeletedResponse, problems=(404,), errors=_ERRORS),
)
def delete_response(principal: Principal, response_id: str) -> Response:
    """Delete a response, cancelling it first where it is not over. Its job stays among the tenant's jobs."""
    services = current_services()
    with services.database.transaction() as session:
        response, job = store.find(session, principal.tenant_id, response_id)
        session.delete(response)
    _cancelled(services, job)
    return jsonify({"id": response_id, "object": "response", "deleted": True})


@endpoint(
    routes,
    "GET",
    "/<response_id>/input_items",
    Contract(scope=Scope.JOBS_READ, query=ItemsQuery, answer=InputItemPage, problems=(400, 404), errors=_ERRORS),
)
def list_input_items(principal: Principal, query: ItemsQuery, response_id: str) -> Response:
    """List what a response answers: the turns before it, and its own input."""
    with current_services().database.transaction() as session:
        items = store.input_items(*store.find(session, principal.tenant_id, response_id))
    if query.order == "desc":
        items.reverse()
    begin = _place_after(items, query.after)
    page = items[begin : begin + query.limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    more = begin + len(page) < len(items)
    return jsonify({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who asks for what."""

    services: Services
    principal: Principal
    headers: CallHeaders
    body: ResponseRequest

    def submit(self, call: Call) -> ResponseForm:
        """Submit the response's job; the form in which it is told."""
        body, told = self.body, self.body.told()
        with self.services.database.transaction() as session:
            before = store.conversation_after(session, self.principal.tenant_id, body.previous_response_id)
        asked = body.model_dump(mode="json", exclude_unset=True, exclude={"stream", "stream_options"})
        submission = Submission(
            bodies=[body.response_job(before)],
            asked=keyed_request(self.principal.tenant_id, self.headers.idempotency_key, lambda: [request.path, asked]),
            traceparent=traceparent_of(self.headers.traceparent),
            names_tokens=body.with_logprobs,
            outlives_connection=bool(body.background),
            keep=(lambda session, job: store.keep(session, job, told)) if body.stored else None,
        )
        with fields_named(body.field_names()):
            call.submit(submission)
        return ResponseForm(told, call.vocabularies[0] if call.vocabularies else None)


def _whole(asking: _Asking, call: Call) -> Response:
    form = asking.submit(call)
    try:
        (document,) = call.wait_for_ends()
    except ClientGone:
        return Response(status=CLIENT_GONE_STATUS)
    return jsonify(form.document(document))


def _streamed(asking: _Asking, call: Call, held: ExitStack) -> Response:
    services, principal = asking.services, asking.principal
    batches, end = services.quotas.admit_stream(
        principal.tenant_id, principal.limits, (items for _, items in call.follow())
    )
    held.callback(end)
    form = asking.submit(call)
    events = ResponseEvents(form, job_document(call.jobs[0]), _FROM_THE_BEGINNING)
    return _event_stream(events, batches, held)


def _told_again(
    services: Services, principal: Principal, form: ResponseForm, document: dict[str, Any], after: int | None
) -> Response:
    sources = Sources(services.database, services.journal, services.live)
    batches: Iterator[Sequence[StreamItem]] = JobStream(sources, document["id"], Cursor()).follow()
    events = ResponseEvents(form, document, _FROM_THE_BEGINNING if after is None else after)
    with ExitStack() as held:
        held.callback(take_place(services))
        counted, end = services.quotas.admit_stream(principal.tenant_id, principal.limits, batches)
        held.callback(end)
        return _event_stream(events, counted, held)


def _event_stream(events: ResponseEvents, batches: Any, held: ExitStack) -> Response:
    """The stream; what is `held` is let go when it closes."""
    response = Response(event_lines(events, batches), mimetype="text/event-stream", headers=STREAM_HEADERS)
    response.call_on_close(held.pop_all().close)
    return response


def _cancelled(services: Services, job: Job) -> Job:
    with suppress(JobAlreadyFinished):
        with services.database.transaction() as session:
            job = jobs.cancel(session, job.tenant_id, job.id)
        announce(services, job)
    return job


def _vocabulary(services: Services, session: Session, job: Job) -> Any:
    """What names the tokens of a job that tells them; None for any other."""
    if not job.params["logprobs"]:
        return None
    return services.prompts.vocabulary(session.get_one(Deployment, job.deployment_id))


def _with_checkpoint(session: Session, job: Job) -> dict[str, Any]:
    """The job's document; of one that has begun with the output that PostgreSQL has."""
    document = job_document(job)
    if job.runs and not JobState(job.state).final:
        document["output"] = assemble_output(kept_entries(session, job.id))
    return document


def _place_after(items: Sequence[dict[str, Any]], after: str | None) -> int:
    if after is None:
        return 0
    for place, item in enumerate(items, start=1):
        if item["id"] == after:
            return place
    raise ValidationFailed(f"after: {after!r} is no item of this response", field="after")
