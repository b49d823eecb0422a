"""Rollouts: where each stands and why, the answers on which its versions differ, and an operator's word."""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from flask import Response, jsonify, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from penstock.dashboard.beginning import FIELDS, Which, asked_for, candidates, errors_at, which_of
from penstock.dashboard.gate import back_to, live, operators_pages, part, told_of
from penstock.dashboard.gate_page import find_gate, gate_page, unit_of, why_it_ended
from penstock.dashboard.gate_pictures import confidence_chart
from penstock.dashboard.policy_views import cost_of
from penstock.errors import NotFound, PenstockError
from penstock.portal.guard import actor, tenant_id
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.rollouts import operating, reading
from penstock.rollouts.flips import Order, flip_document
from penstock.rollouts.operating import Wish
from penstock.rollouts.policy import Policy
from penstock.rollouts.policy_text import written
from penstock.rollouts.presentation import rollout_detail, rollout_document
from penstock.rollouts.services import policy_of
from penstock.services import current_services

blueprint: Final = operators_pages("portal_rollouts", __name__, "/rollouts")
_PAGE: Final = 25
_FLIPS: Final = 20
_DONE: Final = {
    "pause": "The rollout is paused: every new job goes to the champion.",
    "resume": "The rollout goes on where it was.",
    "abort": "The rollout has ended. The champion serves.",
    "rollback": "The candidate was taken back. The champion serves.",
    "promote": "The candidate passed the gate where it stood.",
}


@blueprint.get("")
def index() -> str:
    """Every rollout, newest first."""
    before = request.args.get("before") or None
    with current_services().database.transaction() as session:
        found, older = reading.list_rollouts(session, model=None, status=None, limit=_PAGE, before=before)
        versions = reading.versions_of(session, found)
    documents = [rollout_document(rollout, versions) for rollout in found]
    return render_template("admin/rollouts.html", rollouts=documents, older=older, before=before)


@blueprint.get("/new")
def new() -> str:
    """The form that starts a rollout; `?candidate=MODEL:VERSION` chooses its version."""
    return _form({"candidate": request.args.get("candidate", "")}, {})


@blueprint.get("/new/policy")
def new_policy() -> str:
    """Of the form, what depends on the version and on which policy is chosen."""
    return render_template("admin/new-rollout-policy.html", **_policy_part(request.args, {}))


@blueprint.post("/new")
def start() -> tuple[str, int] | AnyResponse:
    """Start it; the API's own checks, their errors at the fields."""
    values = {name: request.form.get(name, "").strip() for name in FIELDS}
    try:
        asked = asked_for(values)
        wish = Wish(asked.model, asked.version, asked.policy, asked.reason, actor(), tenant_id())
        with current_services().database.transaction() as session:
            rollout_id = operating.begin(session, wish, None).rollout.id
    except PenstockError as error:
        return _form(values, errors_at(error)), 422
    return back_to(url_for("portal_rollouts.show", rollout_id=rollout_id), "The rollout has begun.")


@blueprint.get("/<rollout_id>")
@blueprint.get("/<rollout_id>/gates/<state>/<int:step>")
def show(rollout_id: str, state: str | None = None, step: int = 0) -> str:
    """One rollout, with the gate that is named, or the last that was judged."""
    rollout = _detail(rollout_id)
    return render_template(
        "admin/rollout.html",
        rollout=rollout,
        gate=gate_page(rollout, state, step),
        policy_text=written(Policy.model_validate(rollout["policy"], strict=False)),
        parts=part(_parts(rollout_id, state, step), _parts_address(rollout_id, state, step)),
    )


@blueprint.get("/<rollout_id>/parts")
@blueprint.get("/<rollout_id>/gates/<state>/<int:step>/parts")
def parts(rollout_id: str, state: str | None = None, step: int = 0) -> str | AnyResponse:
    """What changes of the page, for one that is open; 204 while nothing has."""
    return live(_parts(rollout_id, state, step), _parts_address(rollout_id, state, step))


@blueprint.get("/<rollout_id>/cost")
def cost(rollout_id: str) -> str:
    """What the rollout's policy costs, as far as it was rehearsed; each look makes more of it."""
    with current_services().database.transaction() as session:
        policy = policy_of(reading.get(session, rollout_id))
    again = {"hx-get": url_for("portal_rollouts.cost", rollout_id=rollout_id), "hx-swap": "outerHTML"}
    return render_template("admin/cost.html", cost=cost_of(policy), again=again)


@blueprint.get("/<rollout_id>/charts/<state>/<int:step>/<guard>")
def chart(rollout_id: str, state: str, step: int, guard: str) -> Response:
    """How one guardrail's interval went in one gate (`js/bands.js`)."""
    rollout = _detail(rollout_id)
    return jsonify(confidence_chart(find_gate(rollout, state, step), guard, unit_of(rollout, state)))


@blueprint.get("/<rollout_id>/flips")
def flips(rollout_id: str) -> str:
    """Answers on which the versions differ, side by side."""
    asked = request.args.get("order", "")
    order = Order(asked) if asked in set(Order) else Order.DIVERGENCE
    services = current_services()
    with services.database.transaction() as session:
        rollout = rollout_detail(reading.story(session, rollout_id))
        found = operating.read_flips(session, rollout_id, order, _FLIPS, actor(), tenant_id=tenant_id())
    tokenizer_of = cast(Callable[[Deployment], ModelTokenizer], services.prompts.get)
    documents = [flip_document(flip, tokenizer_of) for flip in found]
    return render_template("admin/flips.html", rollout=rollout, flips=documents, order=order, orders=list(Order))


@blueprint.post("/<rollout_id>/<move>")
def move(rollout_id: str, move: str) -> AnyResponse:
    """Pause, resume, abort, roll back or promote, with a reason."""
    if move not in _DONE:
        raise NotFound(f"there is no move {move!r}")
    here = url_for("portal_rollouts.show", rollout_id=rollout_id)
    reason = request.form.get("reason", "").strip()
    try:
        with current_services().database.transaction() as session:
            operating.move(session, rollout_id, move, actor(), reason or "no reason was given", tenant_id=tenant_id())
    except NotFound:
        raise
    except PenstockError as error:
        return told_of(error, here)
    return back_to(here, _DONE[move])


def _form(values: Mapping[str, str], errors: dict[str, str]) -> str:
    with current_services().database.transaction() as session:
        found = candidates(session)
    chosen = next((each.name for each in found if each.name == values.get("candidate")), found[0].name if found else "")
    part = _policy_part({**values, "candidate": chosen}, errors)
    return render_template("admin/new-rollout.html", candidates=found, **part)


def _policy_part(values: Mapping[str, str], errors: dict[str, str]) -> dict[str, Any]:
    """Which policy it would be, and its text: to write one, that of the model is what one begins with."""
    which, model = which_of(values), values.get("candidate", "").rpartition(":")[0]
    with current_services().database.transaction() as session:
        own = operating.stored_policy(session, model)
    policy = reading.as_policy(own) if own is not None and which is not Which.DEFAULT else Policy()
    text = values.get("policy") if which is Which.WRITTEN else None
    return {
        "values": dict(values) | {"which": which, "policy": text or written(policy)},
        "errors": errors, "own": own, "model": model, "ways": list(Which),
    }  # fmt: skip


def _detail(rollout_id: str) -> dict[str, Any]:
    with current_services().database.transaction() as session:
        return rollout_detail(reading.story(session, rollout_id))


def _parts(rollout_id: str, state: str | None, step: int) -> str:
    with current_services().database.transaction() as session:
        story = reading.story(session, rollout_id)
        rollout = rollout_detail(story)
    gate = gate_page(rollout, state, step)
    return render_template("admin/rollout-parts.html", rollout=rollout, gate=gate, ended=why_it_ended(rollout))


def _parts_address(rollout_id: str, state: str | None, step: int) -> str:
    if state is None:
        return url_for("portal_rollouts.parts", rollout_id=rollout_id)
    return url_for("portal_rollouts.parts", rollout_id=rollout_id, state=state, step=step)
