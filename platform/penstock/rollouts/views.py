"""The operators' routes of rollouts, their policies and the ledger. A view parses, calls one service, renders."""

from typing import Any, Final

from apiflask import APIBlueprint
from flask import Response, jsonify, request, url_for
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from penstock.auth.acting import actor_of
from penstock.auth.services import Principal, Scope
from penstock.endpoints import Contract, endpoint
from penstock.errors import ServiceUnavailable
from penstock.idempotency.services import keyed_request
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.rollouts import operating, reading
from penstock.rollouts.counted import counted_document, jobs_of
from penstock.rollouts.documents import (
    CountedJobPage,
    DecisionPage,
    FlipList,
    PolicyDocument,
    RolloutDetail,
    RolloutDocument,
    RolloutPage,
    SimulationDocument,
)
from penstock.rollouts.flips import flip_document
from penstock.rollouts.models import Rollout
from penstock.rollouts.operating import Wish
from penstock.rollouts.presentation import decision_document, policy_document, rollout_detail, rollout_document
from penstock.rollouts.rehearsed import rehearsed
from penstock.rollouts.schemas import (
    CountedJobQuery,
    DecisionQuery,
    FlipQuery,
    MoveRequest,
    PolicyRequest,
    RolloutHeaders,
    RolloutListQuery,
    RolloutRequest,
    SimulationRequest,
    WatchHeaders,
)
from penstock.services import current_services

routes: Final = APIBlueprint("api_rollouts", __name__, url_prefix="/v1/admin", tag="Rollouts")
_UNCHANGED: Final = {304: {"description": "Nothing has changed since the answer with that ETag"}}
_MOVED: Final = Contract(
    scope=Scope.OPERATOR, body=MoveRequest, answer=RolloutDocument, problems=(400, 404, 409, 413, 415)
)
_RETRY_SECONDS: Final = 2


class RolloutAnswerHeaders(BaseModel):
    """Headers of a rollout that has started."""

    location: str = Field(description="Where the rollout is")
    idempotent_replayed: bool | None = Field(
        default=None, description="`true` when an earlier request with the same `Idempotency-Key` started it"
    )


@endpoint(
    routes,
    "POST",
    "/rollouts",
    Contract(
        scope=Scope.OPERATOR,
        headers=RolloutHeaders,
        body=RolloutRequest,
        answer=RolloutDocument,
        status=201,
        answer_headers=RolloutAnswerHeaders,
        problems=(400, 404, 409, 413, 415),
    ),
)
def start_rollout(
    principal: Principal, headers: RolloutHeaders, body: RolloutRequest
) -> tuple[Response, int, dict[str, str]]:
    """Let a version earn its place, gate by gate, against the model's champion."""
    keyed = keyed_request(
        principal.tenant_id, headers.idempotency_key, lambda: ["rollout", body.model_dump(mode="json")]
    )
    wish = Wish(body.model, body.version, body.policy, body.reason, actor_of(principal), principal.tenant_id)
    with current_services().database.transaction() as session:
        begun = operating.begin(session, wish, keyed)
        document = _document(session, begun.rollout)
    location = {"Location": url_for("api_rollouts.get_rollout", rollout_id=document["id"])}
    return jsonify(document), 201, location | ({"Idempotent-Replayed": "true"} if begun.replayed else {})


@endpoint(routes, "GET", "/rollouts", Contract(scope=Scope.OPERATOR, query=RolloutListQuery, answer=RolloutPage))
def list_rollouts(principal: Principal, query: RolloutListQuery) -> Response:  # noqa: ARG001 - every operator sees all
    """List rollouts, newest first."""
    with current_services().database.transaction() as session:
        found, after = reading.list_rollouts(
            session, model=query.model, status=query.status, limit=query.limit, before=query.after
        )
        versions = reading.versions_of(session, found)
    data = [rollout_document(rollout, versions) for rollout in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(
    routes,
    "GET",
    "/rollouts/<rollout_id>",
    Contract(scope=Scope.OPERATOR, headers=WatchHeaders, answer=RolloutDetail, problems=(404,), responses=_UNCHANGED),
)
def get_rollout(principal: Principal, headers: WatchHeaders, rollout_id: str) -> Response:  # noqa: ARG001 - Flask reads it
    """Get a rollout with its policy, its course, the evidence and judgement of each gate, and its moves."""
    with current_services().database.transaction() as session:
        document = rollout_detail(reading.story(session, rollout_id))
    answer = jsonify(document)
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@endpoint(routes, "POST", "/rollouts/<rollout_id>/pause", _MOVED)
def pause_rollout(principal: Principal, body: MoveRequest, rollout_id: str) -> Response:
    """Send every new job to the champion, and judge nothing, until it is resumed."""
    return _move(principal, rollout_id, "pause", body)


@endpoint(routes, "POST", "/rollouts/<rollout_id>/resume", _MOVED)
def resume_rollout(principal: Principal, body: MoveRequest, rollout_id: str) -> Response:
    """Go on where it was paused."""
    return _move(principal, rollout_id, "resume", body)


@endpoint(routes, "POST", "/rollouts/<rollout_id>/abort", _MOVED)
def abort_rollout(principal: Principal, body: MoveRequest, rollout_id: str) -> Response:
    """End it without a verdict. The champion serves."""
    return _move(principal, rollout_id, "abort", body)


@endpoint(routes, "POST", "/rollouts/<rollout_id>/rollback", _MOVED)
def roll_back_rollout(principal: Principal, body: MoveRequest, rollout_id: str) -> Response:
    """Reject the candidate, or take it back from the jobs that it serves; also after it was promoted."""
    return _move(principal, rollout_id, "rollback", body)


@endpoint(routes, "POST", "/rollouts/<rollout_id>/promote", _MOVED)
def promote_rollout(principal: Principal, body: MoveRequest, rollout_id: str) -> Response:
    """Let it pass the gate, or the step, where it stands, whatever was proven."""
    return _move(principal, rollout_id, "promote", body)


@endpoint(
    routes,
    "GET",
    "/rollouts/<rollout_id>/decisions",
    Contract(scope=Scope.OPERATOR, query=DecisionQuery, answer=DecisionPage, problems=(404,)),
)
def list_rollout_decisions(principal: Principal, query: DecisionQuery, rollout_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """List a rollout's moves, newest first, each with its evidence."""
    with current_services().database.transaction() as session:
        reading.get(session, rollout_id)
        return _decisions(session, query, rollout_id)


@endpoint(
    routes,
    "GET",
    "/rollouts/<rollout_id>/jobs",
    Contract(scope=Scope.OPERATOR, query=CountedJobQuery, answer=CountedJobPage, problems=(404,)),
)
def list_rollout_jobs(principal: Principal, query: CountedJobQuery, rollout_id: str) -> Response:  # noqa: ARG001 - every operator sees all
    """List the jobs that a rollout's decisions rest on, newest first: each one's arm, and what came of it."""
    with current_services().database.transaction() as session:
        found, after = jobs_of(session, rollout_id, query.sought, limit=query.limit, before=query.after)
    data = [counted_document(each, rollout_id) for each in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})


@endpoint(
    routes,
    "GET",
    "/rollouts/<rollout_id>/flips",
    Contract(scope=Scope.OPERATOR, query=FlipQuery, answer=FlipList, problems=(404,)),
)
def list_flips(principal: Principal, query: FlipQuery, rollout_id: str) -> Response:
    """List the answers on which the two versions differ most, with what each would have said. The record says who."""
    services = current_services()
    with services.database.transaction() as session:
        found = operating.read_flips(
            session, rollout_id, query.order, query.limit, actor_of(principal), tenant_id=principal.tenant_id
        )
    return jsonify({"object": "list", "data": [flip_document(flip, _tokenizer_of) for flip in found]})


@endpoint(routes, "GET", "/decisions", Contract(scope=Scope.OPERATOR, query=DecisionQuery, answer=DecisionPage))
def list_decisions(principal: Principal, query: DecisionQuery) -> Response:  # noqa: ARG001 - every operator sees all
    """List the ledger over all models, newest first: every move of a rollout, and of an alias by hand."""
    with current_services().database.transaction() as session:
        return _decisions(session, query, query.rollout)


@endpoint(
    routes,
    "POST",
    "/rollouts/simulate",
    Contract(scope=Scope.OPERATOR, body=SimulationRequest, answer=SimulationDocument, problems=(400, 413, 415)),
)
def simulate_rollout(principal: Principal, body: SimulationRequest) -> Response:  # noqa: ARG001 - of nobody's jobs
    """Rehearse rollouts under a policy: how often each candidate is stopped, after how many jobs."""
    services = current_services()
    leave = services.rehearsals.take()
    if leave is None:
        raise ServiceUnavailable("others are being rehearsed; send it again in a moment", retry_after=_RETRY_SECONDS)
    try:
        with services.database.transaction() as session:
            policy = body.policy or operating.policy_of(session, body.model or "")
        return jsonify(rehearsed(policy, body))
    finally:
        leave()


@endpoint(
    routes, "GET", "/models/<name>/policy", Contract(scope=Scope.OPERATOR, answer=PolicyDocument, problems=(404,))
)
def get_rollout_policy(principal: Principal, name: str) -> Response:  # noqa: ARG001 - every operator sees all
    """Get the policy of a model's rollouts; the default one where none was set."""
    with current_services().database.transaction() as session:
        operating.refuse_unknown_model(session, name)
        return jsonify(policy_document(name, operating.stored_policy(session, name)))


@endpoint(
    routes,
    "PUT",
    "/models/<name>/policy",
    Contract(scope=Scope.OPERATOR, body=PolicyRequest, answer=PolicyDocument, problems=(400, 404, 413, 415)),
)
def set_rollout_policy(principal: Principal, body: PolicyRequest, name: str) -> Response:
    """Set the policy of a model's next rollouts. Those under way keep theirs."""
    with current_services().database.transaction() as session:
        stored = operating.set_policy(
            session, name, body.policy, actor_of(principal), body.reason, tenant_id=principal.tenant_id
        )
        return jsonify(policy_document(name, stored))


def _move(principal: Principal, rollout_id: str, name: str, body: MoveRequest) -> Response:
    with current_services().database.transaction() as session:
        rollout = operating.move(
            session, rollout_id, name, actor_of(principal), body.reason, tenant_id=principal.tenant_id
        )
        return jsonify(_document(session, rollout))


def _tokenizer_of(deployment: Deployment) -> ModelTokenizer:
    tokenizer = current_services().prompts.get(deployment)
    assert isinstance(tokenizer, ModelTokenizer)
    return tokenizer


def _document(session: Session, rollout: Rollout) -> dict[str, Any]:
    session.refresh(rollout)
    return rollout_document(rollout, reading.versions_of(session, [rollout]))


def _decisions(session: Session, query: DecisionQuery, rollout_id: str | None) -> Response:
    found, after = reading.list_decisions(
        session, model=query.model, rollout_id=rollout_id, limit=query.limit, before=query.after
    )
    data = [decision_document(decision, evidence=True) for decision in found]
    return jsonify({"object": "list", "data": data, "has_more": after is not None, "next": after})
