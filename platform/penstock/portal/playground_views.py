"""The playground: a prompt or a conversation, its answer as it is generated, and two versions side by side.

What it runs are jobs like any other, tagged `playground`: the address names them, so that back, reload and links work.
"""

import secrets
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from flask import Blueprint, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of
from penstock.errors import PenstockError
from penstock.jobs import services as jobs
from penstock.jobs.ahead import prepare
from penstock.jobs.models import Job
from penstock.jobs.schemas import JobRequest
from penstock.jobs.states import JobState
from penstock.portal.forms import JobForm
from penstock.portal.guard import check_form, guard, tenant_id
from penstock.portal.job_views import address
from penstock.portal.services import Answer, answers_of, version_choices
from penstock.portal.snippets import as_curl, as_python
from penstock.registry.models import Deployment
from penstock.services import current_services
from penstock.usage.budgets import offer

blueprint = Blueprint("portal_playground", __name__, url_prefix="/playground")
blueprint.before_request(check_form)
blueprint.before_request(guard)
TAG: Final = "playground"
_SEEDS: Final = 2**63


@dataclass(frozen=True, slots=True)
class Count:
    """What a request comes to before it is sent: tokens of its prompt, the model's context, and its most cost."""

    tokens: int
    context_length: int
    most: Decimal | None
    currency: str | None


@blueprint.get("")
def index() -> str:
    """The form, filled with the jobs that the address names, and their answers."""
    ids = request.args.getlist("job")[:2]
    with current_services().database.transaction() as session:
        shown = answers_of(session, tenant_id(), ids)
        source = request.args.get("from") or (ids[0] if ids else None)
        earlier = jobs.get(session, tenant_id(), source) if source else None
        choices = version_choices(session)
    form = JobForm.blank(choices[0][0] if choices else "") if earlier is None else _form_of(earlier)
    versus = shown[1].job.model if len(shown) > 1 else ""
    return _page(form, versus, shown, choices, {})


@blueprint.post("")
def run() -> tuple[str, int] | AnyResponse:
    """Submit the request, or both of a comparison, and show the answers as they come."""
    services, form, versus = current_services(), JobForm.sent(request.form), request.form.get("versus", "")
    try:
        asked = [prepare(services, each.request()) for each in _runs(form, versus)]
        with services.database.transaction() as session:
            made = [
                jobs.submit(
                    session, tenant_id=tenant_id(), asked=each, prompts=services.prompts, limits=_limits(session)
                )
                for each in asked
            ]
    except PenstockError as error:
        if error.status >= 500:
            raise
        with services.database.transaction() as session:
            choices = version_choices(session)
        return _page(form, versus, [], choices, _errors(form, choices, error)), error.status
    return redirect(url_for("portal_playground.index", job=[job.id for job in made], _anchor="answers"), 303)


@blueprint.post("/count")
def count() -> str:
    """The tokens of the form's prompt, what it may cost, and the same as code; blank while it asks nothing yet."""
    form = JobForm.sent(request.form)
    try:
        asked = form.request()
        counted = _count(asked)
    except PenstockError as error:
        if error.status >= 500:
            raise
        return render_template("portal/playground/count.html", count=None, error=form.errors(error), curl=None)
    body = form.body()
    return render_template(
        "portal/playground/count.html", count=counted, error={}, curl=as_curl(body, address()),
        python=as_python(body, address()),
    )  # fmt: skip


@blueprint.get("/answers/<job_id>")
def answer(job_id: str) -> str:
    """What is known of an answer beside its text, for a page that is open."""
    with current_services().database.transaction() as session:
        (shown,) = answers_of(session, tenant_id(), [job_id])
    return render_template("portal/playground/stats.html", answer=shown)


def _runs(form: JobForm, versus: str) -> list[JobForm]:
    """The request, or the same for two versions with one seed, so that they draw with the same noise."""
    tagged = form.with_values(tags=TAG)
    if not versus:
        return [tagged]
    seeded = tagged.with_values(seed=form.values.get("params.seed") or str(secrets.randbelow(_SEEDS)))
    return [seeded, seeded.with_values(model=versus)]


def _errors(form: JobForm, choices: list[tuple[str, str]], error: PenstockError) -> dict[str, str]:
    """Each field's error; a version that is not there is the other one's where the first is offered."""
    errors = form.errors(error)
    if "model" in errors and form.values.get("model") in [value for value, _ in choices]:
        errors["versus"] = errors.pop("model")
    return errors


def _form_of(job: Job) -> JobForm:
    """An earlier job's request; with `go_on` in the address its conversation goes on after its answer."""
    form = JobForm.of_job(job)
    choices = (job.output or {}).get("choices", [])
    if not request.args.get("go_on") or form.mode != "chat" or not choices:
        return form
    return form.with_messages(("assistant", choices[0]["text"]), ("user", ""))


def _page(
    form: JobForm, versus: str, shown: list[Answer], choices: list[tuple[str, str]], errors: dict[str, str]
) -> str:
    return render_template(
        "portal/playground/index.html", form=form, versus=versus, answers=shown, choices=choices, errors=errors,
        final={state.value for state in JobState if state.final},
    )  # fmt: skip


def _count(asked: JobRequest) -> Count:
    services = current_services()
    deployment = services.routes.of(asked.model).deployment
    tokens = prepare(services, asked).count(services.prompts, deployment)
    with services.database.transaction() as session:
        most, currency = _most(session, asked, deployment, tokens)
    return Count(tokens, deployment.context_length, most, currency)


def _most(
    session: Session, asked: JobRequest, deployment: Deployment, tokens: int
) -> tuple[Decimal | None, str | None]:
    """What the request costs at most, where tokens have a price and the device's time has none."""
    terms = offer(session, tenant_id(), deployment).terms
    if terms is None:
        return None, None
    left = max(deployment.context_length - tokens, 0)
    output = min(asked.params.max_tokens or left, left) * (asked.params.best_of or asked.params.n)
    return terms.worst(prompt_tokens=tokens, output_tokens=output), terms.currency


def _limits(session: Session) -> jobs.Limits:
    return current_services().quotas.job_limits(tenant_id(), limits_of(session.get_one(Tenant, tenant_id())))
