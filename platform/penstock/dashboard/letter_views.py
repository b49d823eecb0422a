"""Dead letters: jobs that were given up, by reason and version, to run again or to put away."""

from functools import partial
from typing import Final

from flask import render_template, request, url_for
from werkzeug.wrappers import Response

from penstock.bulk import services as bulk
from penstock.bulk.services import Wish
from penstock.bulk.states import BulkAction
from penstock.dashboard.gate import back_to, operators_pages, told_of
from penstock.dead_letters import services as letters
from penstock.dead_letters.burial import DEADLY
from penstock.dead_letters.resubmission import resubmit
from penstock.dead_letters.services import LetterFilter
from penstock.errors import NotFound, PenstockError
from penstock.portal.guard import actor, tenant_id
from penstock.services import current_services

blueprint: Final = operators_pages("portal_letters", __name__, "/dead-letters")
_PAGE: Final = 25
_STATES: Final = ("open", "replayed", "discarded")
_ACTIONS: Final = {"replay": BulkAction.REPLAY_DEAD_LETTERS, "discard": BulkAction.DISCARD_DEAD_LETTERS}


@blueprint.get("")
def index() -> str:
    """The groups of open letters, and the letters of one state, newest first."""
    state = request.args.get("state", "open")
    wanted = LetterFilter(
        state if state in _STATES else "open",
        reason=request.args.get("reason") or None,
        model=request.args.get("model") or None,
        version=request.args.get("version") or None,
    )
    before = request.args.get("before") or None
    with current_services().database.transaction() as session:
        groups = letters.groups(session)
        found, older = letters.list_letters(session, wanted, limit=_PAGE, before=before)
    return render_template(
        "admin/letters.html",
        groups=groups, letters=found, older=older, before=before, wanted=wanted, states=_STATES, meanings=DEADLY,
    )  # fmt: skip


@blueprint.get("/<letter_id>")
def show(letter_id: str) -> str:
    """A letter with the story of its job: all but what its tenant wrote and was answered."""
    with current_services().database.transaction() as session:
        letter = letters.get(session, letter_id)
        job, runs = letters.story(session, letter)
    return render_template("admin/letter.html", letter=letter, job=job, runs=runs, meanings=DEADLY)


@blueprint.post("/<letter_id>/replay")
def replay(letter_id: str) -> Response:
    """Submit the job's request again as a new job of its tenant."""
    services = current_services()
    here = url_for("portal_letters.show", letter_id=letter_id)
    try:
        with services.database.transaction() as session:
            letter = letters.replay(session, letter_id, actor(), partial(resubmit, services, session))
    except NotFound:
        raise
    except PenstockError as error:
        return told_of(error, here)
    return back_to(here, f"It runs again as {letter.replay_job_id}.")


@blueprint.post("/<letter_id>/discard")
def discard(letter_id: str) -> Response:
    """Put the letter away; its job stays failed."""
    here = url_for("portal_letters.show", letter_id=letter_id)
    try:
        with current_services().database.transaction() as session:
            letters.discard(session, letter_id, actor())
    except NotFound:
        raise
    except PenstockError as error:
        return told_of(error, here)
    return back_to(here, "The letter was put away.")


@blueprint.post("/groups/<action>")
def settle_group(action: str) -> Response:
    """Replay or discard all open letters of a group, in the background."""
    if action not in _ACTIONS:
        raise NotFound(f"there is no action {action!r}")
    named = {name: request.form[name] for name in ("reason", "model", "version") if request.form.get(name)}
    here = url_for("portal_letters.index")
    try:
        with current_services().database.transaction() as session:
            wish = Wish(_ACTIONS[action], named, actor(), None)
            begun = bulk.begin(session, tenant_id(), wish, None)
    except PenstockError as error:
        return told_of(error, here)
    return back_to(here, f"It is being done in the background as {begun.operation.id}.")
