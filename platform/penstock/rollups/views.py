"""The operators' route of metrics. The view parses, calls one service, renders."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.rollups.reading import read
from penstock.rollups.schemas import MetricsDocument, MetricsQuery, metrics_document
from penstock.services import current_services

routes: Final = APIBlueprint("api_metrics", __name__, url_prefix="/v1/admin", tag="Operation")


@endpoint(routes, "GET", "/metrics", Contract(scope=Scope.OPERATOR, query=MetricsQuery, answer=MetricsDocument))
def get_metrics(principal: Principal, query: MetricsQuery) -> Response:  # noqa: ARG001 - every operator sees all
    """Read how queues, jobs, tokens, latencies and engines went: the last hour, or up to three months back.

    Minutes are kept for 3 days, hours for 92; a `step` of whole hours reads these.
    """
    question = query.question()
    with current_services().database.transaction() as session:
        return jsonify(metrics_document(question, read(session, question)))
