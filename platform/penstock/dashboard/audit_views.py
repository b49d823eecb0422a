"""The record of changes to who may do what."""

from typing import Final

from flask import render_template, request

from penstock.auth.audit import Action, AuditFilter, list_entries
from penstock.auth.services import list_tenants
from penstock.dashboard.gate import operators_pages
from penstock.services import current_services

blueprint: Final = operators_pages("portal_audit", __name__, "/audit")
_PAGE: Final = 50


@blueprint.get("")
def index() -> str:
    """The entries, newest first; every filter is in the address."""
    action = request.args.get("action", "")
    tenant, target = request.args.get("tenant") or None, request.args.get("target") or None
    wanted = AuditFilter(tenant, Action(action) if action in set(Action) else None, None, target)
    before = request.args.get("before") or None
    with current_services().database.transaction() as session:
        entries, older = list_entries(session, wanted, limit=_PAGE, before=before)
        names = {each.id: each.name for each in list_tenants(session)}
    return render_template(
        "admin/audit.html",
        entries=entries, older=older, before=before, wanted=wanted, actions=list(Action), tenants=names,
    )  # fmt: skip
