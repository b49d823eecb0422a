"""The pages of jobs: the list, the form, one job with its live output."""

import hashlib
import json
from typing import Any

from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from pydantic import ValidationError
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.errors import JobAlreadyFinished, PenstockError
from penstock.feedback import services as feedback
from penstock.feedback.schemas import FeedbackRequest
from penstock.jobs import services as jobs
from penstock.jobs.ahead import prepare
from penstock.jobs.presentation import job_document
from penstock.jobs.services import Limits
from penstock.jobs.sse import stream_response
from penstock.jobs.states import JobClass, JobState
from penstock.jobs.views import announce
from penstock.logs import get_logger
from penstock.portal import wording
from penstock.portal.forms import JobForm
from penstock.portal.guard import check_form, current_user, guard, tenant_id
from penstock.portal.listing import PAGE_SIZE, SPANS, Listing
from penstock.portal.services import JobPage, ModelChoice, deliveries_of, job_page, model_choices
from penstock.portal.snippets import as_curl, as_python, request_body
from penstock.problems import explain_validation
from penstock.services import current_services

blueprint = Blueprint("portal_jobs", __name__, url_prefix="/jobs")
blueprint.before_request(check_form)
blueprint.before_request(guard)
log = get_logger(__name__)


@blueprint.get("")
def index() -> str:
    """The tenant's jobs, newest first."""
    listing = Listing.asked(request.args)
    with current_services().database.transaction() as session:
        found, older = jobs.list_jobs(
            session, tenant_id(), listing.filter(), limit=PAGE_SIZE, before=listing.before or None
        )
        models = _models(session)
    rows = render_template("portal/jobs/rows.html", jobs=found)
    return render_template(
        "portal/jobs/index.html",
        rows=rows, seen=_digest(rows), jobs=found, older=older, listing=listing, models=models, states=list(JobState),
        spans=SPANS, classes=[each.name.lower() for each in JobClass if each is not JobClass.SHADOW],
    )  # fmt: skip


@blueprint.get("/rows")
def rows() -> str | AnyResponse:
    """The rows of the same list for a page that is open; 204 while they are as it has them."""
    listing = Listing.asked(request.args)
    with current_services().database.transaction() as session:
        found, _ = jobs.list_jobs(
            session, tenant_id(), listing.filter(), limit=PAGE_SIZE, before=listing.before or None
        )
    html = render_template("portal/jobs/rows.html", jobs=found)
    if request.args.get("seen") == _digest(html):
        return Response(status=204)
    return render_template("portal/jobs/live-rows.html", rows=html, seen=_digest(html), listing=listing)


@blueprint.get("/new")
def new() -> str:
    """The form, blank or filled with an earlier job's request (`?from=`)."""
    with current_services().database.transaction() as session:
        models = _models(session)
        earlier = jobs.get(session, tenant_id(), request.args["from"]) if request.args.get("from") else None
    form = JobForm.of_job(earlier) if earlier is not None else JobForm.blank(models[0].name if models else "")
    return _compose(form, models, {})


@blueprint.get("/readiness")
def readiness() -> str:
    """Whether the model that the form names is ready, for a form that is open."""
    with current_services().database.transaction() as session:
        models = _models(session)
    return render_template("portal/jobs/readiness.html", models=models, chosen=request.args.get("model", ""))


@blueprint.post("/new")
def submit() -> tuple[str, int] | AnyResponse:
    """Submit what the form asks for and go to the new job; the API's errors are shown at their fields."""
    services, form = current_services(), JobForm.sent(request.form)
    try:
        asked = prepare(services, form.request())
        with services.database.transaction() as session:
            job = jobs.submit(
                session,
                tenant_id=tenant_id(),
                asked=asked,
                prompts=services.prompts,
                limits=_limits(session),
            )
    except PenstockError as error:
        if error.status >= 500:
            raise
        with services.database.transaction() as session:
            return _compose(form, _models(session), form.errors(error)), error.status
    return redirect(url_for("portal_jobs.show", job_id=job.id), 303)


@blueprint.get("/<job_id>")
def show(job_id: str) -> str:
    """One job and everything about it."""
    return render_template("portal/jobs/show.html", **_shown(job_id))


@blueprint.get("/<job_id>/changes")
def changes(job_id: str) -> str:
    """The parts of a job's page that change, for a page that is open."""
    shown = _shown(job_id)
    return render_template("portal/jobs/changes.html", **shown, fresh=request.args.get("seen") != shown["seen"])


@blueprint.get("/<job_id>/events")
def events(job_id: str) -> Response:
    """The job's stream. `after` stands in for `Last-Event-ID` where a page opens the stream anew."""
    last_event_id = request.headers.get("Last-Event-ID") or request.args.get("after")
    return stream_response(current_services(), tenant_id=tenant_id(), job_id=job_id, last_event_id=last_event_id)


@blueprint.get("/<job_id>/raw")
def raw(job_id: str) -> Response:
    """The job's document as the API gives it."""
    with current_services().database.transaction() as session:
        document = job_document(jobs.get(session, tenant_id(), job_id))
    return Response(wording.as_json(document), mimetype="application/json")


@blueprint.post("/<job_id>/cancel")
def cancel(job_id: str) -> AnyResponse:
    """Cancel and come back to the job; one that has just finished is shown as it ended."""
    services = current_services()
    try:
        with services.database.transaction() as session:
            job = jobs.cancel(session, tenant_id(), job_id)
        announce(services, job)
    except JobAlreadyFinished:
        log.info("portal.cancel_came_late", job=job_id)
    return redirect(url_for("portal_jobs.show", job_id=job_id), 303)


@blueprint.post("/<job_id>/retry")
def retry(job_id: str) -> AnyResponse:
    """Submit the job's request again and go to the new job."""
    services = current_services()
    with services.database.transaction() as session:
        job = jobs.retry(session, tenant_id(), job_id, prompts=services.prompts, limits=_limits(session))
    return redirect(url_for("portal_jobs.show", job_id=job.id), 303)


@blueprint.post("/<job_id>/feedback")
def judge(job_id: str) -> AnyResponse:
    """Keep what the person thinks of the answer."""
    user = current_user()
    assert user is not None
    said = {name: request.form.get(name, "").strip() for name in ("label", "comment")}
    score = {"good": 1.0, "bad": 0.0}.get(request.form.get("verdict", ""))
    given = {name: text for name, text in said.items() if text} | {"score": score, "user": user.email}
    with current_services().database.transaction() as session:
        jobs.get(session, tenant_id(), job_id)
        feedback.give(session, tenant_id(), job_id, _feedback(given), api_key_id=user.id)
    flash("Your feedback is kept, with the version that answered.", "good")
    return redirect(url_for("portal_jobs.show", job_id=job_id), 303)


@blueprint.get("/<job_id>/webhooks")
def webhooks(job_id: str) -> str:
    """The deliveries of its events, for a page that is open while they go on."""
    with current_services().database.transaction() as session:
        sent = deliveries_of(session, jobs.get(session, tenant_id(), job_id))
    return render_template("portal/jobs/webhooks.html", deliveries=sent, job_id=job_id)


def _feedback(given: dict[str, Any]) -> FeedbackRequest:
    try:
        return FeedbackRequest.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error) from None


def _shown(job_id: str) -> dict[str, Any]:
    services = current_services()
    with services.database.transaction() as session:
        page = job_page(session, tenant_id(), job_id)
    return {
        "page": page,
        "job": page.job,
        "final": JobState(page.job.state).final,
        "curl": as_curl(request_body(page.job), address()),
        "python": as_python(request_body(page.job), address()),
        "document": wording.as_json(job_document(page.job)),
        "answers": _structured_answers(page),
        "seen": _digest(f"{page.job.last_event} {page.job.first_token_at} {page.waiting and page.waiting.sentences}"),
    }


def address() -> str:
    """The public address of the platform."""
    return current_services().settings.public_url or request.url_root.rstrip("/")


def _compose(form: JobForm, models: list[ModelChoice], errors: dict[str, str]) -> str:
    return render_template("portal/jobs/new.html", form=form, models=models, errors=errors)


def _models(session: Session) -> list[ModelChoice]:
    return model_choices(session, current_services().settings.lease_seconds)


def _limits(session: Session) -> Limits:
    return current_services().quotas.job_limits(tenant_id(), limits_of(session.get_one(Tenant, tenant_id())))


def _structured_answers(page: JobPage) -> list[str]:
    """The answers that are JSON objects or arrays, laid out for reading."""
    laid_out = []
    for choice in (page.job.output or {}).get("choices", []):
        try:
            answer = json.loads(choice["text"])
        except ValueError:
            continue
        if isinstance(answer, dict | list):
            laid_out.append(wording.as_json(answer))
    return laid_out


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
