"""The pages of many jobs at once: what would be done, and how far it is."""

from typing import Any, Final

from flask import Blueprint, flash, redirect, render_template, request, url_for
from pydantic import ValidationError
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.services import Scope
from penstock.bulk import services as bulk
from penstock.bulk.models import BulkOperation
from penstock.bulk.schemas import BulkRequest
from penstock.bulk.services import Wish
from penstock.bulk.states import BulkAction, BulkState
from penstock.clock import utc_now
from penstock.errors import BulkOperationFinished
from penstock.jobs.filters import matching_ids
from penstock.jobs.queries import JobSelection
from penstock.portal.guard import actor, check_form, guard, may, tenant_id
from penstock.portal.listing import Listing
from penstock.problems import explain_validation
from penstock.services import current_services

blueprint = Blueprint("portal_bulk", __name__, url_prefix="/jobs/bulk")
blueprint.before_request(check_form)
blueprint.before_request(guard)
_PAGE_SIZE: Final = 25
_COUNTED: Final = 1000
"""So many are counted before an operation begins; it finds the rest itself."""


@blueprint.get("")
def index() -> str:
    """The tenant's operations, newest first."""
    before = request.args.get("before") or None
    with current_services().database.transaction() as session:
        found, older = bulk.list_operations(
            session, tenant_id(), operator=may(Scope.OPERATOR), limit=_PAGE_SIZE, before=before
        )
    return render_template("portal/bulk/index.html", operations=found, older=older, before=before)


@blueprint.get("/new")
def new() -> str:
    """What would be done to which jobs; `action` and the list's filters are in the address."""
    members = Listing.asked(request.args).fixed(utc_now())
    return _offer(_asked(request.args.get("action", ""), {"filter": members}), members)


@blueprint.post("/new")
def chosen() -> str:
    """What would be done to the jobs that were ticked in the list: `id`, once for each."""
    return _offer(_asked(request.form.get("action", ""), {"ids": request.form.getlist("id")}), {})


@blueprint.post("")
def begin() -> AnyResponse:
    """Begin what was shown, and go to where its progress is."""
    ids = request.form.getlist("id")
    named = {"ids": ids} if ids else {"filter": Listing.asked(request.form).fixed(utc_now())}
    wanted = _asked(request.form.get("action", ""), named)
    wish = Wish(BulkAction(wanted.action), wanted.stored_filter(), actor(), None, targets=wanted.targets())
    with current_services().database.transaction() as session:
        begun = bulk.begin(session, tenant_id(), wish, None)
    return redirect(url_for("portal_bulk.show", bulk_id=begun.operation.id), 303)


@blueprint.get("/<bulk_id>")
def show(bulk_id: str) -> str:
    """One operation."""
    return render_template("portal/bulk/show.html", **_shown(bulk_id))


@blueprint.get("/<bulk_id>/progress")
def progress(bulk_id: str) -> str:
    """The part of its page that changes."""
    return render_template("portal/bulk/progress.html", **_shown(bulk_id))


@blueprint.post("/<bulk_id>/cancel")
def cancel(bulk_id: str) -> AnyResponse:
    """Do no more of it; one that has just ended is shown as it ended."""
    try:
        with current_services().database.transaction() as session:
            bulk.cancel(session, tenant_id(), bulk_id, actor(), operator=may(Scope.OPERATOR))
    except BulkOperationFinished:
        flash("It had just been completed.", "info")
    return redirect(url_for("portal_bulk.show", bulk_id=bulk_id), 303)


def _shown(bulk_id: str) -> dict[str, Any]:
    with current_services().database.transaction() as session:
        operation: BulkOperation = bulk.get(session, tenant_id(), bulk_id, operator=may(Scope.OPERATOR))
        failures = bulk.failures(session, bulk_id)
    return {"operation": operation, "failures": failures, "final": BulkState(operation.state).final}


def _offer(wanted: BulkRequest, members: dict[str, str]) -> str:
    """The page that asks before anything is done."""
    targets = wanted.targets()
    with current_services().database.transaction() as session:
        count = len(targets) or _count(session, wanted)
    return render_template(
        "portal/bulk/new.html", action=wanted.action, members=members, wanted=wanted.stored_filter(), ids=targets,
        count=min(count, _COUNTED), more=count > _COUNTED,
    )  # fmt: skip


def _asked(action: str, named: dict[str, Any]) -> BulkRequest:
    """As the API takes it. Raises `ValidationFailed`."""
    try:
        return BulkRequest.model_validate({"action": action} | named, strict=False)
    except ValidationError as error:
        raise explain_validation(error) from None


def _count(session: Session, wanted: BulkRequest) -> int:
    """How many jobs match, up to one more than are counted."""
    narrowed = JobSelection.model_validate(wanted.stored_filter()).as_filter()
    return len(session.scalars(matching_ids(tenant_id(), narrowed, limit=_COUNTED + 1)).all())
