"""The routes of bulk operations. A view parses, calls one service, renders."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify, url_for
from pydantic import BaseModel, Field

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.bulk import services as bulk
from penstock.bulk.documents import BulkDetail, BulkDocument, BulkPage, bulk_detail, bulk_document
from penstock.bulk.schemas import BulkHeaders, BulkListQuery, BulkRequest
from penstock.bulk.services import Begun, Wish
from penstock.bulk.states import BulkAction
from penstock.endpoints import Contract, endpoint
from penstock.idempotency.services import keyed_request
from penstock.services import current_services

routes: Final = APIBlueprint("api_bulk", __name__, url_prefix="/v1/bulk", tag="Bulk operations")


class BulkAnswerHeaders(BaseModel):
    """Headers of an operation that has begun."""

    location: str = Field(description="Where the operation is")
    idempotent_replayed: bool | None = Field(
        default=None, description="`true` when an earlier request with the same `Idempotency-Key` began it"
    )


@endpoint(
    routes,
    "POST",
    "",
    Contract(
        scope=Scope.JOBS_WRITE,
        headers=BulkHeaders,
        body=BulkRequest,
        answer=BulkDocument,
        status=202,
        answer_headers=BulkAnswerHeaders,
        problems=(400, 409, 413, 415),
    ),
)
def begin_bulk(principal: Principal, headers: BulkHeaders, body: BulkRequest) -> tuple[Response, int, dict[str, str]]:
    """Cancel or replay jobs, by a filter or by ids, in the background. A replay submits their requests as new jobs."""
    wanted, targets = body.stored_filter(), body.targets()
    keyed = keyed_request(
        principal.tenant_id, headers.idempotency_key, lambda: ["bulk", body.action, wanted or targets]
    )
    wish = Wish(BulkAction(body.action), wanted, actor_of(principal), principal.key_id, principal.models, targets)
    with current_services().database.transaction() as session:
        begun = bulk.begin(session, principal.tenant_id, wish, keyed)
    return accepted(begun)


@endpoint(routes, "GET", "", Contract(scope=Scope.JOBS_READ, query=BulkListQuery, answer=BulkPage))
def list_bulk(principal: Principal, query: BulkListQuery) -> Response:
    """List bulk operations, newest first."""
    with current_services().database.transaction() as session:
        found, after = bulk.list_operations(
            session,
            principal.tenant_id,
            operator=principal.may(Scope.OPERATOR),
            limit=query.limit,
            before=query.after,
        )
    data = [bulk_document(operation) for operation in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(routes, "GET", "/<bulk_id>", Contract(scope=Scope.JOBS_READ, answer=BulkDetail, problems=(404,)))
def get_bulk(principal: Principal, bulk_id: str) -> Response:
    """Get a bulk operation: how far it is, what it waits for, and what could not be done and why."""
    with current_services().database.transaction() as session:
        operation = bulk.get(session, principal.tenant_id, bulk_id, operator=principal.may(Scope.OPERATOR))
        failed = bulk.failures(session, bulk_id)
    return jsonify(bulk_detail(operation, failed))


@endpoint(
    routes,
    "POST",
    "/<bulk_id>/cancel",
    Contract(scope=Scope.JOBS_WRITE, answer=BulkDocument, problems=(404, 409)),
)
def cancel_bulk(principal: Principal, bulk_id: str) -> Response:
    """Do no more of a bulk operation. What it has done stays."""
    operator = principal.may(Scope.OPERATOR)
    with current_services().database.transaction() as session:
        operation = bulk.cancel(session, principal.tenant_id, bulk_id, actor_of(principal), operator=operator)
    return jsonify(bulk_document(operation))


def accepted(begun: Begun) -> tuple[Response, int, dict[str, str]]:
    """The answer for an operation that has begun."""
    location = {"Location": url_for("api_bulk.get_bulk", bulk_id=begun.operation.id)}
    replayed = {"Idempotent-Replayed": "true"} if begun.replayed else {}
    return jsonify(bulk_document(begun.operation)), 202, location | replayed
