"""Routes of webhook endpoints and of the log of deliveries. A view parses, calls one service, renders."""

from datetime import timedelta
from typing import Final

from apiflask import APIBlueprint
from flask import Response, jsonify, url_for

from penstock.auth.acting import actor_of
from penstock.auth.documents import list_of
from penstock.auth.services import Principal, Scope
from penstock.auth.views import CreatedHeaders, secretly
from penstock.endpoints import Contract, endpoint
from penstock.services import current_services
from penstock.webhooks import endpoints, replays
from penstock.webhooks.documents import (
    ReplayDocument,
    WebhookDeliveryDetail,
    WebhookDeliveryDocument,
    WebhookDeliveryPage,
    WebhookEndpointDocument,
    WebhookEndpointList,
    WebhookEndpointWithSecret,
    delivery_detail,
    delivery_document,
    endpoint_document,
)
from penstock.webhooks.endpoints import Endpoints
from penstock.webhooks.guard import check_kept
from penstock.webhooks.replays import DeliveryFilter, ReplaySpan
from penstock.webhooks.schemas import (
    DeliveryQuery,
    ReplayRequest,
    RotateRequest,
    WebhookEndpointChangeRequest,
    WebhookEndpointRequest,
)

routes: Final = APIBlueprint("api_webhooks", __name__, url_prefix="/v1", tag="Webhooks")
_ENDPOINTS: Final = "/webhook-endpoints"
_ENDPOINT: Final = "/webhook-endpoints/<endpoint_id>"
_DELIVERIES: Final = "/webhook-deliveries"
_DELIVERY: Final = "/webhook-deliveries/<delivery_id>"


@endpoint(
    routes,
    "POST",
    _ENDPOINTS,
    Contract(
        scope=Scope.ADMIN,
        body=WebhookEndpointRequest,
        answer=WebhookEndpointWithSecret,
        status=201,
        answer_headers=CreatedHeaders,
        problems=(400, 409, 413, 415),
    ),
)
def create_webhook_endpoint(principal: Principal, body: WebhookEndpointRequest) -> tuple[Response, int, dict[str, str]]:
    """Make a webhook endpoint, which gets the events of all the tenant's jobs."""
    _check_address(body.url)
    with current_services().database.transaction() as session:
        made = Endpoints(session, actor_of(principal), principal.tenant_id).create(
            url=body.url, description=body.description, events=body.events
        )
    location = {"Location": url_for("api_webhooks.get_webhook_endpoint", endpoint_id=made.id)}
    return secretly(endpoint_document(made) | {"secret": made.secret}), 201, location


@endpoint(routes, "GET", _ENDPOINTS, Contract(scope=Scope.JOBS_READ, answer=WebhookEndpointList))
def list_webhook_endpoints(principal: Principal) -> Response:
    """List the tenant's webhook endpoints, newest first."""
    with current_services().database.transaction() as session:
        found = endpoints.list_endpoints(session, principal.tenant_id)
    return jsonify(list_of([endpoint_document(each) for each in found]))


@endpoint(routes, "GET", _ENDPOINT, Contract(scope=Scope.JOBS_READ, answer=WebhookEndpointDocument, problems=(404,)))
def get_webhook_endpoint(principal: Principal, endpoint_id: str) -> Response:
    """Get a webhook endpoint and how it stands."""
    with current_services().database.transaction() as session:
        return jsonify(endpoint_document(endpoints.get_endpoint(session, principal.tenant_id, endpoint_id)))


@endpoint(
    routes,
    "PATCH",
    _ENDPOINT,
    Contract(
        scope=Scope.ADMIN,
        body=WebhookEndpointChangeRequest,
        answer=WebhookEndpointDocument,
        problems=(400, 404, 413, 415),
    ),
)
def change_webhook_endpoint(principal: Principal, body: WebhookEndpointChangeRequest, endpoint_id: str) -> Response:
    """Change a webhook endpoint, disable it, or enable it again. Retries go to the new address."""
    if body.url is not None:
        _check_address(body.url)
    with current_services().database.transaction() as session:
        changed = Endpoints(session, actor_of(principal), principal.tenant_id).change(endpoint_id, body.change())
        return jsonify(endpoint_document(changed))


@endpoint(
    routes,
    "DELETE",
    _ENDPOINT,
    Contract(scope=Scope.ADMIN, problems=(404,), responses={204: {"description": "It is gone"}}),
)
def delete_webhook_endpoint(principal: Principal, endpoint_id: str) -> tuple[str, int]:
    """Delete a webhook endpoint and the log of its deliveries."""
    with current_services().database.transaction() as session:
        Endpoints(session, actor_of(principal), principal.tenant_id).remove(endpoint_id)
    return "", 204


@endpoint(
    routes,
    "POST",
    f"{_ENDPOINT}/rotate-secret",
    Contract(scope=Scope.ADMIN, body=RotateRequest, answer=WebhookEndpointWithSecret, problems=(400, 404, 413, 415)),
)
def rotate_webhook_secret(principal: Principal, body: RotateRequest, endpoint_id: str) -> Response:
    """Give a webhook endpoint a fresh secret. For the time of grace the old one signs as well."""
    with current_services().database.transaction() as session:
        rotated = Endpoints(session, actor_of(principal), principal.tenant_id).rotate_secret(
            endpoint_id, timedelta(seconds=body.grace_seconds)
        )
        return secretly(endpoint_document(rotated) | {"secret": rotated.secret})


@endpoint(
    routes,
    "POST",
    f"{_ENDPOINT}/test",
    Contract(scope=Scope.JOBS_WRITE, answer=WebhookDeliveryDocument, status=202, problems=(404,)),
)
def send_test_webhook(principal: Principal, endpoint_id: str) -> tuple[Response, int]:
    """Send a webhook endpoint a test event, also while it is disabled. It is attempted once; look at the delivery."""
    with current_services().database.transaction() as session:
        delivery = Endpoints(session, actor_of(principal), principal.tenant_id).test(endpoint_id)
        return jsonify(delivery_document(delivery)), 202


@endpoint(
    routes,
    "POST",
    f"{_ENDPOINT}/replay",
    Contract(
        scope=Scope.JOBS_WRITE,
        body=ReplayRequest,
        answer=ReplayDocument,
        status=202,
        problems=(400, 404, 409, 413, 415),
    ),
)
def replay_webhook_endpoint(principal: Principal, body: ReplayRequest, endpoint_id: str) -> tuple[Response, int]:
    """Send the deliveries of a span of time again, each with the id that it had: those that failed, or all."""
    span = ReplaySpan(body.since, body.until, body.delivered)
    with current_services().database.transaction() as session:
        replayed = replays.replay_span(session, principal.tenant_id, endpoint_id, span)
    return jsonify({"object": "webhook_replay", "replayed": replayed}), 202


@endpoint(routes, "GET", _DELIVERIES, Contract(scope=Scope.JOBS_READ, query=DeliveryQuery, answer=WebhookDeliveryPage))
def list_webhook_deliveries(principal: Principal, query: DeliveryQuery) -> Response:
    """List deliveries, newest first: to endpoints and to jobs' own addresses."""
    wanted = DeliveryFilter(query.endpoint, query.job, query.status)
    with current_services().database.transaction() as session:
        found, after = replays.list_deliveries(
            session, principal.tenant_id, wanted, limit=query.limit, before=query.after
        )
    data = [delivery_document(delivery) for delivery in found]
    return jsonify(list_of(data) | {"has_more": after is not None, "next": after})


@endpoint(routes, "GET", _DELIVERY, Contract(scope=Scope.JOBS_READ, answer=WebhookDeliveryDetail, problems=(404,)))
def get_webhook_delivery(principal: Principal, delivery_id: str) -> Response:
    """Get a delivery with what is sent and what came of every attempt."""
    with current_services().database.transaction() as session:
        delivery, attempts = replays.get_delivery(session, principal.tenant_id, delivery_id)
        return jsonify(delivery_detail(delivery, attempts))


@endpoint(
    routes,
    "POST",
    f"{_DELIVERY}/replay",
    Contract(scope=Scope.JOBS_WRITE, answer=WebhookDeliveryDocument, status=202, problems=(404, 409)),
)
def replay_webhook_delivery(principal: Principal, delivery_id: str) -> tuple[Response, int]:
    """Send a delivery that has ended again, with the id that it had."""
    with current_services().database.transaction() as session:
        return jsonify(delivery_document(replays.replay_one(session, principal.tenant_id, delivery_id))), 202


def _check_address(url: str) -> None:
    """Before any transaction, because names are looked up."""
    check_kept(url, allow_loopback=current_services().settings.webhook_allow_loopback)
