"""The operators' routes of replays. A view parses, calls one service, renders."""

from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify, url_for
from pydantic import BaseModel, Field

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.replay import services as replays
from penstock.replay.documents import ReplayDocument, ReplayPage, ReplayReport, replay_document
from penstock.replay.report import found_by
from penstock.replay.schemas import ReplayListQuery, ReplayRequest
from penstock.services import current_services

routes: Final = APIBlueprint("api_replays", __name__, url_prefix="/v1/admin/replays", tag="Replays")


class ReplayAnswerHeaders(BaseModel):
    """Headers of a replay that has begun."""

    location: str = Field(description="Where the replay is")


@endpoint(
    routes,
    "POST",
    "",
    Contract(
        scope=Scope.OPERATOR,
        body=ReplayRequest,
        answer=ReplayDocument,
        status=202,
        answer_headers=ReplayAnswerHeaders,
        problems=(400, 404, 409, 413, 415),
    ),
)
def begin_replay(principal: Principal, body: ReplayRequest) -> tuple[Response, int, dict[str, str]]:
    """Run stored jobs against another version, in the background, when nothing else waits. Nobody is told or billed."""
    with current_services().database.transaction() as session:
        replay = replays.begin(session, body, actor_of(principal))
        document = replay_document(replay, replays.versions_of(session, [replay]))
    location = url_for("api_replays.get_replay", replay_id=document["id"])
    return jsonify(document), 202, {"Location": location}


@endpoint(routes, "GET", "", Contract(scope=Scope.OPERATOR, query=ReplayListQuery, answer=ReplayPage))
def list_all_replays(principal: Principal, query: ReplayListQuery) -> Response:  # noqa: ARG001 - every operator sees all
    """List replays, newest first."""
    with current_services().database.transaction() as session:
        found, after = replays.list_replays(session, limit=query.limit, before=query.after)
        versions = replays.versions_of(session, found)
    data = [replay_document(replay, versions) for replay in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(routes, "GET", "/<replay_id>", Contract(scope=Scope.OPERATOR, answer=ReplayDocument, problems=(404,)))
def get_replay(principal: Principal, replay_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get a replay: how far it is."""
    with current_services().database.transaction() as session:
        replay = replays.get(session, replay_id)
        document = replay_document(replay, replays.versions_of(session, [replay]))
    return jsonify(document)


@endpoint(routes, "GET", "/<replay_id>/report", Contract(scope=Scope.OPERATOR, answer=ReplayReport, problems=(404,)))
def get_replay_report(principal: Principal, replay_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get what a replay has found so far. It holds no text of any job."""
    with current_services().database.transaction() as session:
        replay = replays.get(session, replay_id)
        report = {
            "replay": replay_document(replay, replays.versions_of(session, [replay])),
            **found_by(session, replay),
        }
    return jsonify(report)


@endpoint(
    routes, "POST", "/<replay_id>/cancel", Contract(scope=Scope.OPERATOR, answer=ReplayDocument, problems=(404, 409))
)
def cancel_replay(principal: Principal, replay_id: str) -> Response:
    """Compare no more jobs. What was found stays."""
    with current_services().database.transaction() as session:
        replay = replays.cancel(session, replay_id, actor_of(principal))
        document = replay_document(replay, replays.versions_of(session, [replay]))
    return jsonify(document)
