"""The operators' routes of workers and deployments. A view parses, calls a service, renders."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.deployments.schemas import PlacementRequest
from penstock.deployments.services import place
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services
from penstock.workers import services as workers
from penstock.workers.documents import (
    DeploymentDocument,
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


@endpoint(
    routes,
    "GET",
    "/deployments/<deployment_id>",
    Contract(scope=Scope.OPERATOR, answer=DeploymentDocument, problems=(404,)),
)
def get_deployment(principal: Principal, deployment_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get a model version with where it should be hosted, and where it is."""
    with current_services().database.transaction() as session:
        return jsonify(deployment_document(workers.get_deployment(session, deployment_id)))


@endpoint(
    routes,
    "PUT",
    "/deployments/<deployment_id>",
    Contract(scope=Scope.OPERATOR, body=PlacementRequest, answer=DeploymentDocument, problems=(400, 404, 413, 415)),
)
def place_deployment(principal: Principal, body: PlacementRequest, deployment_id: str) -> Response:
    """Say on which workers a version is to be hosted, with what of their memory, and whether all the time.

    Workers follow within seconds: they load it beside what they have, and let it go once its jobs are done.
    """
    with current_services().database.transaction() as session:
        place(session, deployment_id, body.desired(), actor_of(principal), tenant_id=principal.tenant_id)
        return jsonify(deployment_document(workers.get_deployment(session, deployment_id)))
