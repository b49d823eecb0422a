"""The operators' routes of dead letters. A view parses, calls one service, renders."""

from functools import partial
from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.bulk import services as bulk
from penstock.bulk.documents import BulkDocument
from penstock.bulk.schemas import BulkHeaders
from penstock.bulk.services import Wish
from penstock.bulk.states import BulkAction
from penstock.bulk.views import BulkAnswerHeaders, accepted
from penstock.dead_letters import services as letters
from penstock.dead_letters.documents import (
    DeadLetterDetail,
    DeadLetterDocument,
    DeadLetterGroups,
    DeadLetterPage,
    LetterBulkRequest,
    LetterQuery,
    group_document,
    letter_detail,
    letter_document,
)
from penstock.dead_letters.resubmission import resubmit
from penstock.dead_letters.services import LetterFilter
from penstock.endpoints import Contract, endpoint
from penstock.idempotency.services import keyed_request
from penstock.services import current_services

routes: Final = APIBlueprint("api_dead_letters", __name__, url_prefix="/v1/admin/dead-letters", tag="Operation")
_ACTIONS: Final = {"replay": BulkAction.REPLAY_DEAD_LETTERS, "discard": BulkAction.DISCARD_DEAD_LETTERS}


@endpoint(routes, "GET", "", Contract(scope=Scope.OPERATOR, query=LetterQuery, answer=DeadLetterPage))
def list_dead_letters(principal: Principal, query: LetterQuery) -> Response:  # noqa: ARG001 - every operator sees all
    """List the jobs that were given up because running them breaks something, newest first."""
    wanted = LetterFilter(query.status, query.reason, query.model, query.version, query.tenant)
    with current_services().database.transaction() as session:
        found, after = letters.list_letters(session, wanted, limit=query.limit, before=query.after)
    data = [letter_document(letter) for letter in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(routes, "GET", "/groups", Contract(scope=Scope.OPERATOR, answer=DeadLetterGroups))
def list_dead_letter_groups(principal: Principal) -> Response:  # noqa: ARG001 - every operator sees all
    """Count the open dead letters by reason and model version."""
    with current_services().database.transaction() as session:
        found = letters.groups(session)
    return jsonify({"object": "list", "data": [group_document(group) for group in found]})


@endpoint(routes, "GET", "/<letter_id>", Contract(scope=Scope.OPERATOR, answer=DeadLetterDetail, problems=(404,)))
def get_dead_letter(principal: Principal, letter_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get a dead letter with the story of its job: every run, its worker, its times and how it ended."""
    with current_services().database.transaction() as session:
        letter = letters.get(session, letter_id)
        job, runs = letters.story(session, letter)
    return jsonify(letter_detail(letter, job, runs))


@endpoint(
    routes,
    "POST",
    "/<letter_id>/replay",
    Contract(scope=Scope.OPERATOR, answer=DeadLetterDocument, problems=(400, 402, 404, 409, 422, 429)),
)
def replay_dead_letter(principal: Principal, letter_id: str) -> Response:
    """Submit the job's request again as a new job of its tenant. Asking again makes no second one."""
    services = current_services()
    with services.database.transaction() as session:
        submit = partial(resubmit, services, session)
        letter = letters.replay(session, letter_id, actor_of(principal), submit)
    return jsonify(letter_document(letter))


@endpoint(
    routes,
    "POST",
    "/<letter_id>/discard",
    Contract(scope=Scope.OPERATOR, answer=DeadLetterDocument, problems=(404, 409)),
)
def discard_dead_letter(principal: Principal, letter_id: str) -> Response:
    """Put a dead letter away. Its job stays as it is."""
    with current_services().database.transaction() as session:
        letter = letters.discard(session, letter_id, actor_of(principal))
    return jsonify(letter_document(letter))


@endpoint(
    routes,
    "POST",
    "/bulk",
    Contract(
        scope=Scope.OPERATOR,
        headers=BulkHeaders,
        body=LetterBulkRequest,
        answer=BulkDocument,
        status=202,
        answer_headers=BulkAnswerHeaders,
        problems=(400, 409, 413, 415),
    ),
)
def settle_dead_letters(
    principal: Principal, headers: BulkHeaders, body: LetterBulkRequest
) -> tuple[Response, int, dict[str, str]]:
    """Replay or discard all open dead letters of a group, in the background, as a bulk operation."""
    wanted = body.filter.model_dump(mode="json", exclude_none=True)
    keyed = keyed_request(principal.tenant_id, headers.idempotency_key, lambda: ["dead letters", body.action, wanted])
    wish = Wish(_ACTIONS[body.action], wanted, actor_of(principal), principal.key_id, principal.models)
    with current_services().database.transaction() as session:
        begun = bulk.begin(session, principal.tenant_id, wish, keyed)
    return accepted(begun)
