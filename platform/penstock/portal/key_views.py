"""The page of API keys: made, shown once, revoked. For the tenant's administrators, as in the API."""

from datetime import timedelta
from typing import Any, Final

from flask import Blueprint, flash, redirect, render_template, request, url_for
from pydantic import ValidationError
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth import services as auth
from penstock.auth.administration import Administration
from penstock.auth.models import ApiKey
from penstock.auth.schemas import KeyRequest
from penstock.auth.services import Scope
from penstock.clock import utc_now
from penstock.errors import PenstockError
from penstock.portal.fields import errors_of
from penstock.portal.guard import actor, check_form, guard, may, require, tenant_id
from penstock.problems import explain_validation
from penstock.routing.services import available_models
from penstock.services import current_services

blueprint = Blueprint("portal_keys", __name__, url_prefix="/keys")
blueprint.before_request(check_form)
blueprint.before_request(guard)
_SPANS: Final = {"": "Never", "1": "In a day", "30": "In 30 days", "90": "In 90 days", "365": "In a year"}
_SCOPES: Final = {
    Scope.JOBS_READ: "Read jobs, batches, files and usage",
    Scope.JOBS_WRITE: "Submit, cancel and retry them",
    Scope.ADMIN: "Everything of this tenant: keys, people, webhooks",
    Scope.OPERATOR: "Everything of the installation",
}


@blueprint.before_request
def administrators_alone() -> None:
    """Refuse everybody else, as the API does."""
    require(Scope.ADMIN)


@blueprint.get("")
def index() -> str:
    """The tenant's keys, newest first, and the form for another."""
    return _index({}, {"scopes": [Scope.JOBS_READ.value, Scope.JOBS_WRITE.value]})


@blueprint.post("")
def create() -> tuple[str, int] | str:
    """Make a key and show it, this once."""
    form = request.form
    given: dict[str, Any] = {
        "name": form.get("name", ""),
        "scopes": form.getlist("scopes"),
        "span": form.get("span", ""),
    }
    given["models"] = form.getlist("models")
    services = current_services()
    try:
        body = _parsed(given)
        with services.database.transaction() as session:
            key, secret = Administration(session, actor()).create_key(
                tenant_id(), name=body.name, scopes=body.scopes, environment=services.settings.environment,
                expires_at=body.expires_at, models=body.models,
            )  # fmt: skip
    except PenstockError as error:
        return _index(errors_of(error), given), error.status
    return render_template("portal/keys/made.html", key=key, secret=secret)


@blueprint.post("/<key_id>/revoke")
def revoke(key_id: str) -> AnyResponse:
    """End a key for good."""
    with current_services().database.transaction() as session:
        key = Administration(session, actor()).revoke_key(tenant_id(), key_id)
    flash(f"{key.name} is revoked: within two seconds it opens nothing.", "good")
    return redirect(url_for("portal_keys.index"), 303)


def standing_of(key: ApiKey) -> str:
    """Whether the key works: `active`, `expired` or `revoked`."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= utc_now() else "active"


def _index(errors: dict[str, str], values: dict[str, Any]) -> str:
    with current_services().database.transaction() as session:
        keys = auth.list_api_keys(session, tenant_id())
        models = available_models(session)
    return render_template(
        "portal/keys/index.html", keys=keys, standing_of=standing_of, models=models, errors=errors, values=values,
        scopes={scope.value: words for scope, words in _SCOPES.items() if may(scope)}, spans=_SPANS,
    )  # fmt: skip


def _parsed(given: dict[str, Any]) -> KeyRequest:
    known = [scope.value for scope in Scope]
    body = {"name": given["name"], "scopes": [Scope(name) if name in known else name for name in given["scopes"]]}
    if given["span"] in _SPANS and given["span"]:
        body["expires_at"] = utc_now() + timedelta(days=int(given["span"]))
    try:
        return KeyRequest.model_validate(body | ({"models": given["models"]} if given["models"] else {}))
    except ValidationError as error:
        raise explain_validation(error) from None
