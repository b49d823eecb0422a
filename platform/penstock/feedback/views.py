"""The routes of a job's feedback."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.feedback import services as feedback
from penstock.feedback.schemas import (
    FeedbackAnswerHeaders,
    FeedbackDocument,
    FeedbackHeaders,
    FeedbackPage,
    FeedbackQuery,
    FeedbackRequest,
    feedback_document,
)
from penstock.idempotency.services import keyed_request
from penstock.services import current_services

routes: Final = APIBlueprint("api_feedback", __name__, url_prefix="/v1/jobs", tag="Jobs")


@endpoint(
    routes,
    "POST",
    "/<job_id>/feedback",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=FeedbackHeaders,
        body=FeedbackRequest,
        answer=FeedbackDocument,
        status=201,
        answer_headers=FeedbackAnswerHeaders,
        problems=(400, 404, 409, 413, 415),
    ),
)
def give_feedback(
    principal: Principal, headers: FeedbackHeaders, body: FeedbackRequest, job_id: str
) -> tuple[Response, int, dict[str, str]]:
    """Judge a finished job's answer, by a score, a label, or both. A job may have any number of judgements."""
    sent = body.model_dump(mode="json", exclude_unset=True)
    asked = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: ["feedback", job_id, sent])
    with current_services().database.transaction() as session:
        given, replayed = feedback.give(
            session, principal.tenant_id, job_id, body, api_key_id=principal.key_id, asked=asked
        )
        document = feedback_document(given)
    return jsonify(document), 201, {"Idempotent-Replayed": "true"} if replayed else {}


@endpoint(
    routes,
    "GET",
    "/<job_id>/feedback",
    Contract(scope=Scope.JOBS_READ, query=FeedbackQuery, answer=FeedbackPage, problems=(404,)),
)
def list_feedback(principal: Principal, query: FeedbackQuery, job_id: str) -> Response:
    """List what was said of a job's answer, oldest first."""
    with current_services().database.transaction() as session:
        found, after = feedback.list_feedback(
            session, principal.tenant_id, job_id, limit=query.limit, after=query.after
        )
        data = [feedback_document(each) for each in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})
