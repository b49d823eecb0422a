"""The pages of batches: made from a file, followed line by line, paused, retried, downloaded while they go on."""

from collections.abc import Callable
from typing import Any, Final

from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from pydantic import ValidationError
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from penstock.batches import services as batches
from penstock.batches.finishing import JSONL, LINES_AT_ONCE
from penstock.batches.models import Batch
from penstock.batches.progress import progress_of, progresses_of
from penstock.batches.schemas import BatchChangeRequest, BatchListQuery, BatchRequest, BatchRetryRequest
from penstock.batches.states import RETRYABLE, RUNNING, BatchState, LineState
from penstock.errors import BatchFinished, NothingToRetry, PenstockError
from penstock.files import services as files
from penstock.files.models import Purpose
from penstock.openai_api.batch_views import as_lines, page_of
from penstock.portal.batch_reading import LINES_A_PAGE, line_page
from penstock.portal.fields import errors_of
from penstock.portal.guard import Member, check_form, guard, tenant_id
from penstock.problems import explain_validation, refuse_field
from penstock.services import current_services

blueprint = Blueprint("portal_batches", __name__, url_prefix="/batches")
blueprint.before_request(check_form)
blueprint.before_request(guard)
_PAGE_SIZE: Final = 20
_OFFERED_FILES: Final = 50
_LAST_LINE: Final = 2**31 - 1
_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/jobs")
_WINDOWS: Final = {"1h": "An hour", "24h": "A day", "7d": "A week", "30d": "30 days"}
_DEFAULTS: Final = {"endpoint": _ENDPOINTS[0], "completion_window": "24h", "invalid_lines": "refuse", "priority": "0"}


@blueprint.get("")
def index() -> str:
    """The tenant's batches, newest first, each with how far it is."""
    return render_template("portal/batches/index.html", **_listed())


@blueprint.get("/rows")
def rows() -> str:
    """The same list for a page that is open."""
    return render_template("portal/batches/rows.html", **_listed())


@blueprint.get("/new")
def new() -> str:
    """The form, blank or with a file that is there (`?file=`)."""
    return _form(_DEFAULTS | {"input_file_id": request.args.get("file", "")}, {})


@blueprint.post("/new")
def create() -> tuple[str, int] | AnyResponse:
    """Make a batch of a file and go to it; what is wrong is told at the form's fields."""
    given = {name: request.form.get(name, "").strip() for name in ("input_file_id", *_DEFAULTS)}
    try:
        body = _parsed(given)
        with current_services().database.transaction() as session:
            made = batches.create(session, Member(tenant_id()), body, None)
    except PenstockError as error:
        return _form(given, errors_of(error)), error.status
    return redirect(url_for("portal_batches.show", batch_id=made.batch.id), 303)


@blueprint.get("/<batch_id>")
def show(batch_id: str) -> str:
    """One batch: how far it is, what is wrong with its file, and its lines."""
    return render_template("portal/batches/show.html", **_shown(batch_id))


@blueprint.get("/<batch_id>/changes")
def changes(batch_id: str) -> str:
    """The parts of its page that change."""
    return render_template("portal/batches/changes.html", **_shown(batch_id))


@blueprint.get("/<batch_id>/results.jsonl")
def results(batch_id: str) -> Response:
    """All that has finished by now, a line each, while the batch goes on."""
    services, tenant = current_services(), tenant_id()
    page = page_of(services, tenant, batch_id, 0, LINES_AT_ONCE)
    headers = {"Content-Disposition": f"attachment; filename={batch_id}.jsonl"}
    return Response(as_lines(services, tenant, batch_id, page), mimetype=JSONL, headers=headers)


@blueprint.post("/<batch_id>/pause")
def pause(batch_id: str) -> AnyResponse:
    """Begin no more of its lines."""
    return _change(batch_id, lambda session: batches.pause(session, tenant_id(), batch_id))


@blueprint.post("/<batch_id>/resume")
def resume(batch_id: str) -> AnyResponse:
    """Go on with it."""
    return _change(batch_id, lambda session: batches.resume(session, tenant_id(), batch_id))


@blueprint.post("/<batch_id>/cancel")
def cancel(batch_id: str) -> AnyResponse:
    """Stop it; what has finished is kept."""
    return _change(batch_id, lambda session: batches.cancel(session, tenant_id(), batch_id))


@blueprint.post("/<batch_id>/priority")
def prioritise(batch_id: str) -> AnyResponse:
    """Give it another place among the tenant's batches."""
    with current_services().database.transaction() as session:
        batches.get(session, tenant_id(), batch_id)
    try:
        asked = BatchChangeRequest.model_validate({"priority": _whole_number(request.form.get("priority", ""))})
    except ValidationError as error:
        raise explain_validation(error) from None
    return _change(batch_id, lambda session: batches.change_priority(session, tenant_id(), batch_id, asked.priority))


@blueprint.post("/<batch_id>/retry")
def retry(batch_id: str) -> AnyResponse:
    """Try the lines again that may come out otherwise, or the one that is named: a new batch of them alone."""
    ids = request.form.getlist("custom_id")
    body = BatchRetryRequest(custom_ids=ids or None)
    try:
        with current_services().database.transaction() as session:
            made = batches.retry(session, Member(tenant_id()), batch_id, body, None)
    except NothingToRetry:
        flash("No line of it has failed, expired or been cancelled.", "bad")
        return redirect(url_for("portal_batches.show", batch_id=batch_id), 303)
    flash("The lines are tried again in this new batch.", "good")
    return redirect(url_for("portal_batches.show", batch_id=made.batch.id), 303)


def _change(batch_id: str, work: Callable[[Session], Batch]) -> AnyResponse:
    """Do it and come back to the batch; one that has just ended is shown as it ended."""
    try:
        with current_services().database.transaction() as session:
            work(session)
    except BatchFinished as error:
        flash(f"{error.message[:1].upper()}{error.message[1:]}.", "bad")
    return redirect(url_for("portal_batches.show", batch_id=batch_id), 303)


def _listed() -> dict[str, Any]:
    asked = {name: request.args[name] for name in ("after",) if request.args.get(name)}
    try:
        query = BatchListQuery.model_validate(asked)
    except ValidationError as error:
        raise explain_validation(error) from None
    with current_services().database.transaction() as session:
        found, more = batches.list_batches(session, tenant_id(), limit=_PAGE_SIZE, after=query.after)
        listed = list(zip(found, progresses_of(session, found), strict=True))
    return {"batches": listed, "older": found[-1].id if more else None, "after": query.after}


def _shown(batch_id: str) -> dict[str, Any]:
    status, given = request.args.get("status", ""), request.args.get("after", "")
    if status not in ("", *LineState):
        raise refuse_field("status", "is none that lines have", f"choose among {', '.join(LineState)}")
    wanted = LineState(status) if status else None
    after = min(int(given), _LAST_LINE) if given.isdecimal() else 0
    with current_services().database.transaction() as session:
        batch = batches.get(session, tenant_id(), batch_id)
        lines = line_page(session, batch, wanted, after=after)
        progress = progress_of(session, batch)
    return {
        "batch": batch, "progress": progress, "found": lines, "status": status, "after": after,
        "final": BatchState(batch.state).final, "running": batch.state in RUNNING, "states": list(LineState),
        "retryable": sum(progress.counts[state] for state in RETRYABLE), "page_size": LINES_A_PAGE,
    }  # fmt: skip


def _form(values: dict[str, str], errors: dict[str, str]) -> str:
    services = current_services()
    with services.database.transaction() as session:
        found, _ = files.list_files(session, tenant_id(), files.FileFilter(Purpose.BATCH), limit=_OFFERED_FILES)
    return render_template(
        "portal/batches/new.html", files=found, values=values, errors=errors, endpoints=_ENDPOINTS, windows=_WINDOWS,
        most=services.settings.max_file_bytes,
    )  # fmt: skip


def _parsed(given: dict[str, str]) -> BatchRequest:
    try:
        return BatchRequest.model_validate(given | {"priority": _whole_number(given["priority"] or "0")})
    except ValidationError as error:
        raise explain_validation(error) from None


def _whole_number(text: str) -> int | str:
    """What the field holds; where that is no number, the text itself, which is refused."""
    try:
        return int(text)
    except ValueError:
        return text
