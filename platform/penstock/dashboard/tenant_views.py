"""Tenants: their limits, what they have waiting, and shutting one out for a time."""

from typing import Final

from flask import render_template, request, url_for
from pydantic import ValidationError
from werkzeug.wrappers import Response

from penstock.auth.administration import Administration
from penstock.auth.schemas import TenantChangeRequest
from penstock.auth.services import get_tenant, list_api_keys, list_users
from penstock.dashboard.gate import back_to, operators_pages, told_of
from penstock.dashboard.tenancy import tenant_rows
from penstock.errors import NotFound, PenstockError
from penstock.portal.fields import number_or_text
from penstock.portal.guard import actor
from penstock.problems import explain_validation
from penstock.services import current_services

blueprint: Final = operators_pages("portal_tenants", __name__, "/tenants")
LIMITS: Final = {
    "max_queued_jobs": "Waiting jobs",
    "requests_per_minute": "Requests a minute",
    "tokens_per_minute": "Tokens a minute",
    "max_open_streams": "Open streams",
}


@blueprint.get("")
def index() -> str:
    """Every tenant, by name."""
    with current_services().database.transaction() as session:
        return render_template("admin/tenants.html", tenants=tenant_rows(session), limits=LIMITS)


@blueprint.get("/<tenant_id>")
def show(tenant_id: str) -> str:
    """One tenant: its limits and weight, its people and keys."""
    return _page(tenant_id, {}, {})


@blueprint.post("/<tenant_id>")
def change(tenant_id: str) -> tuple[str, int] | Response:
    """Give it another weight or limits; the API's own checks, their errors at the fields."""
    given = {name: request.form.get(name, "").strip() for name in ("weight", *LIMITS)}
    try:
        # A field that is left empty has the installation's own limit.
        limits = {name: number_or_text(text) if text else None for name, text in given.items()}
        asked = TenantChangeRequest.model_validate(limits, strict=False)
        with current_services().database.transaction() as session:
            Administration(session, actor()).change_tenant(tenant_id, **asked.changes())
    except ValidationError as error:
        told = explain_validation(error).extra["errors"]
        return _page(tenant_id, given, {each["field"]: f"{each['message']}; {each['expected']}" for each in told}), 422
    return back_to(url_for("portal_tenants.show", tenant_id=tenant_id), "The limits hold within two seconds.")


@blueprint.post("/<tenant_id>/<action>")
def act(tenant_id: str, action: str) -> Response:
    """Suspend the tenant, or end that."""
    here = url_for("portal_tenants.show", tenant_id=tenant_id)
    if action not in ("suspend", "resume"):
        raise NotFound(f"there is no action {action!r}")
    try:
        with current_services().database.transaction() as session:
            administration = Administration(session, actor())
            (administration.suspend_tenant if action == "suspend" else administration.resume_tenant)(tenant_id)
    except NotFound:
        raise
    except PenstockError as error:
        return told_of(error, here)
    done = "Its keys and people are refused now." if action == "suspend" else "Its keys and people are let in again."
    return back_to(here, done)


def _page(tenant_id: str, given: dict[str, str], errors: dict[str, str]) -> str:
    with current_services().database.transaction() as session:
        tenant = get_tenant(session, tenant_id)
        row = next((each for each in tenant_rows(session, tenant_id)), None)
        people, keys = list_users(session, tenant_id), list_api_keys(session, tenant_id)
    values = {name: given.get(name, getattr(tenant, name)) for name in ("weight", *LIMITS)}
    return render_template(
        "admin/tenant.html",
        tenant=tenant, row=row, people=people, keys=keys, limits=LIMITS, values=values, errors=errors,
    )  # fmt: skip
