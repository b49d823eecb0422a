"""Policies of rollouts: each model's versions of it, editing one as YAML, and what one costs before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flask import render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from penstock.dashboard.beginning import errors_at, policy_in
from penstock.dashboard.cost_picture import CostPage, cost_page
from penstock.dashboard.gate import back_to, operators_pages
from penstock.dashboard.lineage import model_names
from penstock.errors import InvalidJson, NotFound, PenstockError, ValidationFailed
from penstock.portal.fields import sentence
from penstock.portal.guard import actor, tenant_id
from penstock.rollouts import costs, operating, reading
from penstock.rollouts.models import StoredPolicy
from penstock.rollouts.policy import Policy, read_policy
from penstock.rollouts.policy_text import Change, changes, line_of, written
from penstock.services import current_services

blueprint: Final = operators_pages("portal_policies", __name__, "/policies")


@dataclass(frozen=True, slots=True)
class Version:
    """One of a model's policies, and what it says otherwise than the one before."""

    stored: StoredPolicy
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong in a policy's text: where, in which line if that is known, and what would be right."""

    path: str
    line: int | None
    says: str


@blueprint.get("")
def index() -> str:
    """Every model, and which policy its next rollout has."""
    with current_services().database.transaction() as session:
        own = reading.newest_policies(session)
        models = [(name, own.get(name)) for name in model_names(session)]
    return render_template("admin/policies.html", models=models)


@blueprint.get("/<model>")
def show(model: str) -> str:
    """A model's policies; `?number=` chooses the one in the editor, else the newest."""
    return _page(model, {}, {})


@blueprint.post("/<model>")
def save(model: str) -> tuple[str, int] | AnyResponse:
    """Keep the text as the model's next policy, if it is one."""
    values = {name: request.form.get(name, "").strip() for name in ("policy", "reason")}
    try:
        policy = policy_in(values["policy"])
        with current_services().database.transaction() as session:
            stored = operating.set_policy(
                session, model, policy, actor(), values["reason"] or None, tenant_id=tenant_id()
            )
            number = stored.number
    except (InvalidJson, ValidationFailed) as error:
        return _page(model, values, errors_at(error)), 422
    return back_to(url_for("portal_policies.show", model=model), f"Number {number} holds from the next rollout on.")


@blueprint.post("/check")
def check() -> str:
    """What is wrong with a policy's text, or else what it would cost; for an editor that is open."""
    text = request.form.get("policy", "")
    try:
        policy = read_policy(text)
    except (InvalidJson, ValidationFailed) as error:
        return render_template("admin/policy-told.html", mistakes=mistakes_in(text, error))
    return render_template(
        "admin/policy-told.html",
        version=policy.version,
        differs=changes(Policy(), policy),
        cost=cost_of(policy),
        again={
            "hx-post": url_for("portal_policies.check"),
            "hx-include": "closest form",
            "hx-target": "#policy-told",
            "hx-swap": "innerHTML",
        },
    )


def cost_of(policy: Policy) -> CostPage:
    """What is known of its cost now; each look makes more of it."""
    services = current_services()
    return cost_page(costs.look(policy, services.redis, services.rehearsals))


def mistakes_in(text: str, error: PenstockError) -> list[Mistake]:
    """The error's problems, each with its line."""
    problems: list[Mapping[str, str]] = error.extra.get("errors") or [{"field": "", "message": error.message}]
    return [
        Mistake(each["field"], line_of(text, each["field"]) if each["field"] else None, sentence(each))
        for each in problems
    ]


def _page(model: str, values: Mapping[str, str], errors: Mapping[str, str]) -> str:
    with current_services().database.transaction() as session:
        operating.refuse_unknown_model(session, model)
        stored = reading.policies(session, model)
    versions = _versions(stored)
    shown = _chosen(stored)
    policy = Policy() if shown is None else reading.as_policy(shown)
    values = values or {"policy": written(policy)}
    return render_template(
        "admin/policy.html", model=model, versions=versions, shown=shown, values=values, errors=errors
    )


def _chosen(stored: list[StoredPolicy]) -> StoredPolicy | None:
    """That of the number asked for, or the newest, if there is one. Raises `NotFound`."""
    number = request.args.get("number", type=int)
    if number is None:
        return stored[0] if stored else None
    found = next((each for each in stored if each.number == number), None)
    if found is None:
        raise NotFound(f"the model has no policy number {number}")
    return found


def _versions(stored: list[StoredPolicy]) -> list[Version]:
    policies = [*(reading.as_policy(each) for each in stored), Policy()]
    return [Version(each, changes(policies[at + 1], policies[at])) for at, each in enumerate(stored)]
