"""The pages of webhooks: endpoints, what was sent to them and what they said, and sending it again."""

from datetime import timedelta
from typing import Any, Final, TypeVar, get_args

from flask import Blueprint, flash, redirect, render_template, request, url_for
from pydantic import BaseModel, ValidationError
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.services import Scope
from penstock.errors import PenstockError
from penstock.portal.fields import errors_of, moment_or_text
from penstock.portal.guard import actor, check_form, guard, may, require, tenant_id
from penstock.problems import explain_validation
from penstock.services import current_services
from penstock.webhooks import endpoints, replays
from penstock.webhooks.endpoints import Endpoints
from penstock.webhooks.guard import check_kept
from penstock.webhooks.models import WebhookEndpoint
from penstock.webhooks.replays import DeliveryFilter, ReplaySpan
from penstock.webhooks.schemas import (
    FINAL_EVENTS,
    DeliveryQuery,
    ReplayRequest,
    RotateRequest,
    WebhookEndpointChangeRequest,
    WebhookEndpointRequest,
    WebhookEventName,
)

blueprint = Blueprint("portal_webhooks", __name__, url_prefix="/webhooks")
blueprint.before_request(check_form)
blueprint.before_request(guard)
EVENTS: Final = get_args(WebhookEventName)
_PAGE_SIZE: Final = 25
_GRACES: Final = {"0": "none: at once", "3600": "an hour", "86400": "a day", "604800": "a week"}
_Body = TypeVar("_Body", bound=BaseModel)


@blueprint.get("")
def index() -> str:
    """The tenant's endpoints, and the newest deliveries to them and to jobs' own addresses."""
    return _index({}, {"events": FINAL_EVENTS})


@blueprint.post("")
def create() -> tuple[str, int] | str:
    """Make an endpoint and show its secret, this once."""
    require(Scope.ADMIN)
    asked = {name: request.form.get(name, "").strip() for name in ("url", "description")}
    given = asked | {"events": request.form.getlist("events")}
    try:
        body = _parsed(WebhookEndpointRequest, given)
        _check_address(body.url)
        with current_services().database.transaction() as session:
            made = Endpoints(session, actor(), tenant_id()).create(
                url=body.url, description=body.description, events=body.events
            )
    except PenstockError as error:
        return _index(errors_of(error), given), error.status
    return render_template("portal/webhooks/secret.html", endpoint=made, rotated=False)


@blueprint.get("/<endpoint_id>")
def show(endpoint_id: str) -> str:
    """One endpoint and its deliveries."""
    return _show(endpoint_id, {}, {})


@blueprint.get("/<endpoint_id>/deliveries")
def deliveries(endpoint_id: str) -> str:
    """The part of its page that goes on by itself."""
    return render_template("portal/webhooks/deliveries.html", **_shown(endpoint_id))


@blueprint.post("/<endpoint_id>")
def change(endpoint_id: str) -> tuple[str, int] | AnyResponse:
    """Give it another address, description or events; disable or enable it."""
    require(Scope.ADMIN)
    form = request.form
    given: dict[str, Any] = {name: form[name].strip() for name in ("url", "description") if name in form}
    if "url" in form:
        given["events"] = form.getlist("events")
    if "disabled" in form:
        given["disabled"] = form["disabled"] == "yes"
    with current_services().database.transaction() as session:
        endpoints.get_endpoint(session, tenant_id(), endpoint_id)
    try:
        body = _parsed(WebhookEndpointChangeRequest, given)
        if body.url is not None:
            _check_address(body.url)
        with current_services().database.transaction() as session:
            Endpoints(session, actor(), tenant_id()).change(endpoint_id, body.change())
    except PenstockError as error:
        return _show(endpoint_id, errors_of(error), given), error.status
    flash("The endpoint is changed.", "good")
    return redirect(url_for("portal_webhooks.show", endpoint_id=endpoint_id), 303)


@blueprint.post("/<endpoint_id>/rotate")
def rotate(endpoint_id: str) -> str:
    """A fresh secret, shown this once; the one before signs as well for the time that was chosen."""
    require(Scope.ADMIN)
    seconds = request.form.get("grace", "86400")
    with current_services().database.transaction() as session:
        endpoints.get_endpoint(session, tenant_id(), endpoint_id)
        body = _parsed(RotateRequest, {"grace_seconds": int(seconds) if seconds.isdecimal() else seconds})
        grace = timedelta(seconds=body.grace_seconds)
        made = Endpoints(session, actor(), tenant_id()).rotate_secret(endpoint_id, grace)
    return render_template("portal/webhooks/secret.html", endpoint=made, rotated=True)


@blueprint.post("/<endpoint_id>/test")
def test(endpoint_id: str) -> AnyResponse:
    """Send it a test event, and go to see what becomes of it."""
    with current_services().database.transaction() as session:
        sent = Endpoints(session, actor(), tenant_id()).test(endpoint_id)
    return redirect(url_for("portal_webhooks.delivery", delivery_id=sent.id), 303)


@blueprint.post("/<endpoint_id>/delete")
def delete(endpoint_id: str) -> AnyResponse:
    """Delete it with the log of its deliveries."""
    require(Scope.ADMIN)
    with current_services().database.transaction() as session:
        Endpoints(session, actor(), tenant_id()).remove(endpoint_id)
    flash("The endpoint is gone.", "good")
    return redirect(url_for("portal_webhooks.index"), 303)


@blueprint.post("/<endpoint_id>/replay")
def replay_span(endpoint_id: str) -> tuple[str, int] | AnyResponse:
    """Send what was queued in a span of time again."""
    form = request.form
    given = {"since": moment_or_text(form.get("since", "")), "delivered": form.get("delivered") == "yes"}
    if form.get("until"):
        given["until"] = moment_or_text(form["until"])
    try:
        with current_services().database.transaction() as session:
            endpoints.get_endpoint(session, tenant_id(), endpoint_id)
            body = _parsed(ReplayRequest, given)
            span = ReplaySpan(body.since, body.until, body.delivered)
            count = replays.replay_span(session, tenant_id(), endpoint_id, span)
    except PenstockError as error:
        if error.status == 404:
            raise
        return _show(endpoint_id, errors_of(error), {}), error.status
    flash(f"{count} {'delivery is' if count == 1 else 'deliveries are'} sent again.", "good" if count else "info")
    return redirect(url_for("portal_webhooks.show", endpoint_id=endpoint_id), 303)


@blueprint.get("/deliveries/<delivery_id>")
def delivery(delivery_id: str) -> str:
    """One delivery: what is sent, and what came of every attempt."""
    return render_template("portal/webhooks/delivery.html", **_delivered(delivery_id))


@blueprint.get("/deliveries/<delivery_id>/attempts")
def attempts(delivery_id: str) -> str:
    """The part of its page that goes on by itself."""
    return render_template("portal/webhooks/attempts.html", **_delivered(delivery_id))


@blueprint.post("/deliveries/<delivery_id>/replay")
def replay(delivery_id: str) -> AnyResponse:
    """Send it again, with the id that it had."""
    with current_services().database.transaction() as session:
        replays.replay_one(session, tenant_id(), delivery_id)
    flash("It is sent again.", "good")
    return redirect(url_for("portal_webhooks.delivery", delivery_id=delivery_id), 303)


def _index(errors: dict[str, str], values: dict[str, Any]) -> str:
    with current_services().database.transaction() as session:
        found = endpoints.list_endpoints(session, tenant_id())
        sent, _ = replays.list_deliveries(session, tenant_id(), DeliveryFilter(), limit=_PAGE_SIZE)
    return render_template(
        "portal/webhooks/index.html", endpoints=found, deliveries=sent, errors=errors, values=values, events=EVENTS,
        administers=may(Scope.ADMIN),
    )  # fmt: skip


def _show(endpoint_id: str, errors: dict[str, str], values: dict[str, Any]) -> str:
    shown = _shown(endpoint_id)
    return render_template(
        "portal/webhooks/show.html", **shown, errors=errors, values=_values(shown["endpoint"]) | values, events=EVENTS,
        graces=_GRACES, administers=may(Scope.ADMIN),
    )  # fmt: skip


def _shown(endpoint_id: str) -> dict[str, Any]:
    asked = {name: request.args[name] for name in ("status", "after") if request.args.get(name)}
    query = _parsed(DeliveryQuery, asked | {"limit": _PAGE_SIZE})
    wanted = DeliveryFilter(endpoint_id=endpoint_id, status=query.status)
    with current_services().database.transaction() as session:
        endpoint = endpoints.get_endpoint(session, tenant_id(), endpoint_id)
        sent, older = replays.list_deliveries(session, tenant_id(), wanted, limit=_PAGE_SIZE, before=query.after)
    return {"endpoint": endpoint, "deliveries": sent, "older": older, "status": query.status, "after": query.after}


def _delivered(delivery_id: str) -> dict[str, Any]:
    with current_services().database.transaction() as session:
        found, tried = replays.get_delivery(session, tenant_id(), delivery_id)
    return {"delivery": found, "attempts": tried}


def _values(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {"url": endpoint.url, "description": endpoint.description, "events": endpoint.events}


def _parsed(kind: type[_Body], given: dict[str, Any]) -> _Body:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error) from None


def _check_address(url: str) -> None:
    """Before any transaction, because names are looked up."""
    check_kept(url, allow_loopback=current_services().settings.webhook_allow_loopback)
