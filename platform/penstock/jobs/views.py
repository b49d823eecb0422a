"""The jobs' routes. A view parses, calls one service, renders."""

from collections.abc import Callable
from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, g, jsonify, request, url_for
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy.orm import Session

from penstock.auth.permits import refuse_model
from penstock.auth.services import Principal, Scope
from penstock.compressions.entry import submission_on_files
from penstock.compressions.schemas import EvaluateRequest, QuantizeRequest
from penstock.connection import watch
from penstock.endpoints import Contract, endpoint, schema_of
from penstock.idempotency.services import Accepted, KeyedRequest, accept_once, keyed_request
from penstock.jobs import services as jobs
from penstock.jobs.ahead import prepare
from penstock.jobs.details import describe, with_newest_output
from penstock.jobs.documents import JobDetail, JobDocument, JobPage
from penstock.jobs.models import Job
from penstock.jobs.presentation import job_document
from penstock.jobs.queries import (
    ListQuery,
    RetryHeaders,
    StreamHeaders,
    StreamQuery,
    SubmitAnswerHeaders,
    SubmitHeaders,
)
from penstock.jobs.schemas import JobRequest
from penstock.jobs.sse import stream_response
from penstock.jobs.states import JobState
from penstock.jobs.waiting import wait_asked, wait_until_final
from penstock.logs import get_logger
from penstock.routing.services import model_name_of
from penstock.services import Services, current_services
from penstock.tracing import valid_traceparent
from penstock.webhooks.guard import check_numeric

log = get_logger(__name__)
routes: Final = APIBlueprint("api_jobs", __name__, url_prefix="/v1/jobs", tag="Jobs")
_JSON: Final = "application/json"
_STREAM: Final = {
    "description": (
        "Server-Sent Events. Each has an `id` of the form `<event>.<position>`; sent back as `Last-Event-ID` it "
        "resumes exactly there. `output.delta` events carry an OutputDelta, all others are the job's state events and "
        "carry an EventDocument; the last one is a FinalEvent, after which the stream ends. A comment is sent when "
        "nothing else was for 15 seconds."
    ),
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": (
                "id: 2.1\nevent: output.delta\n"
                'data: {"position": 0, "choice": 0, "index": 0, "token_id": 5, "text": "Hi"}\n\n'
            ),
        }
    },
}


@endpoint(
    routes,
    "POST",
    "",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=SubmitHeaders,
        body=JobRequest,
        kinds={"quantize": QuantizeRequest, "evaluate": EvaluateRequest},
        answer=JobDocument,
        status=202,
        answer_headers=SubmitAnswerHeaders,
        problems=(400, 402, 404, 409, 413, 415, 429),
        responses={
            200: {
                "description": "The job is over: with `Prefer: wait=N`, within N seconds",
                "content": {_JSON: {"schema": schema_of(JobDocument)}},
            }
        },
    ),
)
def submit_job(
    principal: Principal, headers: SubmitHeaders, body: JobRequest | QuantizeRequest | EvaluateRequest
) -> tuple[Response, int, dict[str, str]]:
    """Submit a job.

    It is kept before the answer is sent, and served when its turn comes, whatever becomes of this connection.
    """
    services = current_services()
    seconds = wait_asked(headers.prefer)
    if body.webhook is not None:
        check_numeric(body.webhook.url, allow_loopback=services.settings.webhook_allow_loopback, field="webhook.url")
    asked = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: ["submit", _as_sent(body)])
    if isinstance(body, JobRequest):
        submit = _submission(services, principal, body, headers)
    else:
        submit = submission_on_files(services, principal, body, traceparent_of(headers.traceparent))
    accepted = _accept(services, asked, submit)
    document, answer_headers = accepted.document, _answer_headers(accepted)
    if seconds:
        document = _waited(services, principal, accepted.job_id, seconds)
        answer_headers["Preference-Applied"] = f"wait={seconds}"
    return jsonify(document), 200 if JobState(document["status"]).final else 202, answer_headers


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, query=ListQuery, answer=JobPage))
def list_jobs(principal: Principal, query: ListQuery) -> Response:
    """List jobs, newest first."""
    with current_services().database.transaction() as session:
        found, after = jobs.list_jobs(
            session, principal.tenant_id, query.as_filter(), limit=query.limit, before=query.after
        )
    data = [job_document(job) for job in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(routes, "GET", "/<job_id>", Contract(scope=Scope.JOBS_READ, answer=JobDetail, problems=(404,)))
def get_job(principal: Principal, job_id: str) -> Response:
    """Get a job, with its history, its place in the queue and its output so far."""
    services = current_services()
    with services.database.transaction() as session:
        document = describe(session, principal.tenant_id, job_id)
    return jsonify(with_newest_output(document, services.journal))


@endpoint(
    routes,
    "POST",
    "/<job_id>/cancel",
    Contract(
        scope=Scope.JOBS_WRITE,
        answer=JobDocument,
        problems=(404, 409),
        responses={
            202: {
                "description": "It is running: its worker stops it at the next token and keeps the output so far",
                "content": {_JSON: {"schema": schema_of(JobDocument)}},
            }
        },
    ),
)
def cancel_job(principal: Principal, job_id: str) -> tuple[Response, int]:
    """Cancel a job. What it has generated is kept."""
    services = current_services()
    with services.database.transaction() as session:
        job = jobs.cancel(session, principal.tenant_id, job_id)
    announce(services, job)
    return jsonify(job_document(job)), 200 if JobState(job.state).final else 202


@endpoint(
    routes,
    "POST",
    "/<job_id>/retry",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=RetryHeaders,
        answer=JobDocument,
        status=202,
        answer_headers=SubmitAnswerHeaders,
        problems=(400, 402, 404, 409, 422, 429),
    ),
)
def retry_job(principal: Principal, headers: RetryHeaders, job_id: str) -> tuple[Response, int, dict[str, str]]:
    """Submit a finished job's request again, as a new job that names the old one in `retry_of`."""
    services = current_services()
    asked = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: ["retry", job_id])

    def retry(session: Session) -> Job:
        refuse_model(principal, jobs.get(session, principal.tenant_id, job_id).model_name)
        return jobs.retry(
            session,
            principal.tenant_id,
            job_id,
            prompts=services.prompts,
            limits=services.quotas.job_limits(principal.tenant_id, principal.limits),
            api_key_id=principal.key_id,
        )

    accepted = _accept(services, asked, retry)
    return jsonify(accepted.document), 202, _answer_headers(accepted)


@endpoint(
    routes,
    "GET",
    "/<job_id>/events",
    Contract(
        scope=Scope.JOBS_READ,
        headers=StreamHeaders,
        query=StreamQuery,
        problems=(404,),
        responses={200: _STREAM, 204: {"description": "The event that `Last-Event-ID` names was the last"}},
    ),
)
def stream_job(principal: Principal, headers: StreamHeaders, query: StreamQuery, job_id: str) -> Response:
    """Stream a job's events and tokens, from its beginning or from any event on, while it runs or long after."""
    return stream_response(
        current_services(),
        tenant_id=principal.tenant_id,
        job_id=job_id,
        last_event_id=headers.last_event_id or query.last_event_id,
    )


def announce(services: Services, job: Job) -> None:
    """Tell live readers of a job's new state event. Without Redis they find it themselves, within seconds."""
    try:
        services.journal.announce([job.id])
    except RedisError as error:
        log.warning("job.not_announced", job=job.id, error=type(error).__name__)


def _submission(
    services: Services, principal: Principal, body: JobRequest, headers: SubmitHeaders
) -> Callable[[Session], Job]:
    """What submits the job, in whichever transaction."""
    prepared = prepare(services, body)

    def submit(session: Session) -> Job:
        refuse_model(principal, model_name_of(body.model))
        return jobs.submit(
            session,
            tenant_id=principal.tenant_id,
            asked=prepared,
            prompts=services.prompts,
            limits=services.quotas.job_limits(principal.tenant_id, principal.limits),
            traceparent=traceparent_of(headers.traceparent),
            api_key_id=principal.key_id,
        )

    return submit


def _accept(services: Services, asked: KeyedRequest | None, make: Callable[[Session], Job]) -> Accepted:
    with services.database.transaction() as session:
        return accept_once(session, asked, lambda: make(session), keep_seconds=services.settings.idempotency_seconds)


def _answer_headers(accepted: Accepted) -> dict[str, str]:
    location = {"Location": url_for("api_jobs.get_job", job_id=accepted.job_id)}
    return location | ({"Idempotent-Replayed": "true"} if accepted.replayed else {})


def _waited(services: Services, principal: Principal, job_id: str, seconds: int) -> dict[str, Any]:
    with services.database.transaction() as session:
        job = jobs.get(session, principal.tenant_id, job_id)
    return job_document(wait_until_final(services, job, seconds, watch(request.environ)))


def _as_sent(body: BaseModel) -> dict[str, Any]:
    """What the body gives, without what it leaves to defaults, so that a new default changes no fingerprint."""
    return body.model_dump(mode="json", by_alias=True, exclude_unset=True)


def traceparent_of(given: str | None) -> str | None:
    """What names this request's trace to those who come after: its own span, or the header where that holds one."""
    carried: str | None = g.get("traceparent")
    return carried or valid_traceparent(given)
