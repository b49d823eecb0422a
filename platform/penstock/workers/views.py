"""The operators' routes of workers and deployments. A view parses, calls one service, renders."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services
from penstock.workers import services as workers
from penstock.workers.documents import (
    DeploymentList,
    WorkerDocument,
    WorkerList,
    deployment_document,
    worker_document,
)

routes: Final = APIBlueprint("api_workers", __name__, url_prefix="/v1/admin", tag="Operation")


@endpoint(routes, "GET", "/workers", Contract(scope=Scope.OPERATOR, answer=WorkerList))
def list_workers(principal: Principal) -> Response:  # noqa: ARG001 - every operator sees all
    """List the workers: what they host, how much they run, and when they were last heard of."""
    with current_services().database.transaction() as session:
        data = [worker_document(standing) for standing in workers.list_workers(session)]
    return jsonify({"object": "list", "data": data})


@endpoint(routes, "GET", "/workers/<worker_id>", Contract(scope=Scope.OPERATOR, answer=WorkerDocument, problems=(404,)))
def get_worker(principal: Principal, worker_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get a worker."""
    with current_services().database.transaction() as session:
        return jsonify(worker_document(workers.get_worker(session, worker_id)))


@endpoint(
    routes,
    "POST",
    "/workers/<worker_id>/drain",
    Contract(scope=Scope.OPERATOR, answer=WorkerDocument, status=202, problems=(404,)),
)
def drain_worker(principal: Principal, worker_id: str) -> tuple[Response, int]:
    """Have a worker take no more jobs, finish those that it has or hand them back, and end.

    Its exit status is 76, so that its supervisor starts another in its place.
    """
    with current_services().database.transaction() as session:
        standing = workers.request_drain(session, worker_id, actor_of(principal), tenant_id=principal.tenant_id)
    return jsonify(worker_document(standing)), 202


@endpoint(routes, "GET", "/deployments", Contract(scope=Scope.OPERATOR, answer=DeploymentList))
def list_deployments(principal: Principal) -> Response:  # noqa: ARG001 - every operator sees all
    """List the model versions that workers host, with what waits for each."""
    with current_services().database.transaction() as session:
        data = [deployment_document(standing) for standing in workers.list_deployments(session)]
    return jsonify({"object": "list", "data": data})
