"""The routes of batches: those that OpenAI's clients know, and beside them ours."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify
from sqlalchemy.orm import Session

from penstock.auth.services import Principal, Scope
from penstock.batches import services as batches
from penstock.batches.documents import BatchDocument, BatchPage, BatchResultPage, batch_document
from penstock.batches.finishing import JSONL, LINES_AT_ONCE, jsonl
from penstock.batches.models import Batch
from penstock.batches.progress import progress_of, progresses_of
from penstock.batches.results import Page, Results
from penstock.batches.schemas import (
    BatchChangeRequest,
    BatchListQuery,
    BatchRequest,
    BatchResultsQuery,
    BatchRetryRequest,
    ResultsHeaders,
)
from penstock.endpoints import Contract, endpoint, schema_of
from penstock.idempotency.services import keyed_request
from penstock.jobs.queries import RetryHeaders
from penstock.openai_api.file_views import THEIR_FORM
from penstock.services import Services, current_services

routes: Final = APIBlueprint("api_batches", __name__, url_prefix="/v1/batches", tag="Files and batches")
_READ: Final = Contract(scope=Scope.JOBS_READ, answer=BatchDocument, problems=(404,), errors=THEIR_FORM)
_CHANGE: Final = Contract(scope=Scope.JOBS_WRITE, answer=BatchDocument, problems=(404, 409), errors=THEIR_FORM)
_BOTH: Final = {
    "application/json": {"schema": schema_of(BatchResultPage)},
    JSONL: {"schema": {"type": "string"}, "example": '{"custom_id": "a", "response": {...}, "error": null, ...}\n'},
}


@endpoint(
    routes,
    "POST",
    "",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=RetryHeaders,
        body=BatchRequest,
        answer=BatchDocument,
        problems=(400, 404, 413, 415),
        errors=THEIR_FORM,
    ),
)
def create_batch(principal: Principal, headers: RetryHeaders, body: BatchRequest) -> Response:
    """Make a batch of the requests in a file, a line each. They are validated, and then become jobs."""
    asked = ["batch", body.model_dump(mode="json", exclude_unset=True)]
    keyed = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: asked)
    return _made(lambda session: batches.create(session, principal, body, keyed))


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, query=BatchListQuery, answer=BatchPage, errors=THEIR_FORM))
def list_batches(principal: Principal, query: BatchListQuery) -> Response:
    """List batches, newest first."""
    with current_services().database.transaction() as session:
        found, more = batches.list_batches(session, principal.tenant_id, limit=query.limit, after=query.after)
        data = [batch_document(*each) for each in zip(found, progresses_of(session, found), strict=True)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return jsonify({"object": "list", "data": data, **ends, "has_more": more})


@endpoint(routes, "GET", "/<batch_id>", _READ)
def get_batch(principal: Principal, batch_id: str) -> Response:
    """Get a batch: where its lines stand, how fast they finish, and when it will be through."""
    return _answer(lambda session: batches.get(session, principal.tenant_id, batch_id))


@endpoint(
    routes,
    "PATCH",
    "/<batch_id>",
    Contract(
        scope=Scope.JOBS_WRITE,
        body=BatchChangeRequest,
        answer=BatchDocument,
        problems=(400, 404, 409, 413, 415),
        errors=THEIR_FORM,
    ),
)
def change_batch(principal: Principal, body: BatchChangeRequest, batch_id: str) -> Response:
    """Give a batch another priority; its waiting jobs take it at once."""
    return _answer(lambda session: batches.change_priority(session, principal.tenant_id, batch_id, body.priority))


@endpoint(routes, "POST", "/<batch_id>/cancel", _CHANGE)
def cancel_batch(principal: Principal, batch_id: str) -> Response:
    """Cancel a batch. What has finished is kept, and told in its files."""
    return _answer(lambda session: batches.cancel(session, principal.tenant_id, batch_id))


@endpoint(routes, "POST", "/<batch_id>/pause", _CHANGE)
def pause_batch(principal: Principal, batch_id: str) -> Response:
    """Pause a batch: what runs goes on, nothing else of it begins."""
    return _answer(lambda session: batches.pause(session, principal.tenant_id, batch_id))


@endpoint(routes, "POST", "/<batch_id>/resume", _CHANGE)
def resume_batch(principal: Principal, batch_id: str) -> Response:
    """Go on with a paused batch."""
    return _answer(lambda session: batches.resume(session, principal.tenant_id, batch_id))


@endpoint(
    routes,
    "POST",
    "/<batch_id>/retry",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=RetryHeaders,
        body=BatchRetryRequest,
        answer=BatchDocument,
        problems=(400, 404, 409, 413, 415),
        errors=THEIR_FORM,
    ),
)
def retry_batch(principal: Principal, headers: RetryHeaders, body: BatchRetryRequest, batch_id: str) -> Response:
    """Try the lines again that failed, expired or were cancelled: a new batch of them alone, with `retry_of`."""
    asked = ["retry batch", batch_id, body.model_dump(mode="json", exclude_unset=True)]
    keyed = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: asked)
    return _made(lambda session: batches.retry(session, principal, batch_id, body, keyed))


@endpoint(
    routes,
    "GET",
    "/<batch_id>/results",
    Contract(
        scope=Scope.JOBS_READ,
        headers=ResultsHeaders,
        query=BatchResultsQuery,
        answer=BatchResultPage,
        problems=(404,),
        responses={200: {"description": "A page of results, or all of them as JSON Lines", "content": _BOTH}},
        errors=THEIR_FORM,
    ),
)
def read_results(principal: Principal, headers: ResultsHeaders, query: BatchResultsQuery, batch_id: str) -> Response:
    """Read what came of the lines that have finished, in the order in which they did, while the batch goes on."""
    services = current_services()
    page = page_of(services, principal.tenant_id, batch_id, query.after, query.limit)
    if JSONL in (headers.accept or ""):
        return Response(as_lines(services, principal.tenant_id, batch_id, page), mimetype=JSONL)
    return jsonify({"object": "list", "data": page.results, "has_more": page.has_more, "next": page.next})


def page_of(services: Services, tenant_id: str, batch_id: str, after: int, limit: int) -> Page:
    """The results behind that position, at most `limit`. Raises `NotFound`."""
    with services.database.transaction() as session:
        batch = batches.get(session, tenant_id, batch_id)
        return Results(session, services.prompts, batch).settled_after(after, limit)


def as_lines(services: Services, tenant_id: str, batch_id: str, page: Page) -> Iterator[bytes]:
    """The page and all that follow it, as JSON Lines, up to what has finished by then."""
    while True:
        yield b"".join(map(jsonl, page.results))
        if not page.has_more:
            return
        page = page_of(services, tenant_id, batch_id, page.next, LINES_AT_ONCE)


def _answer(work: Callable[[Session], Batch]) -> Response:
    with current_services().database.transaction() as session:
        batch = work(session)
        session.flush()
        document = _document(session, batch)
    return jsonify(document)


def _made(work: Callable[[Session], batches.Made]) -> Response:
    with current_services().database.transaction() as session:
        made = work(session)
        session.flush()
        document = _document(session, made.batch)
    response = jsonify(document)
    if made.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _document(session: Session, batch: Batch) -> dict[str, Any]:
    return batch_document(batch, progress_of(session, batch))
