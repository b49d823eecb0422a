"""Workers: who lives, what each hosts and holds, and having one end."""

from typing import Final

from flask import render_template, url_for
from werkzeug.wrappers import Response

from penstock.dashboard.gate import back_to, live, operators_pages, part, told_of
from penstock.dashboard.hosting import wanted_in_words
from penstock.errors import NotFound
from penstock.portal.guard import actor, tenant_id
from penstock.services import current_services
from penstock.workers.services import list_deployments, list_workers, request_drain

blueprint: Final = operators_pages("portal_workers", __name__, "/workers")


@blueprint.get("")
def index() -> str:
    """Every worker that is known, and the model versions that they host."""
    return render_template("admin/workers.html", parts=part(_parts(), url_for("portal_workers.parts")))


@blueprint.get("/parts")
def parts() -> str | Response:
    """What changes of the page, for one that is open; 204 while nothing has."""
    return live(_parts(), url_for("portal_workers.parts"))


@blueprint.post("/<worker_id>/drain")
def drain(worker_id: str) -> Response:
    """Have it take no more jobs and end."""
    try:
        with current_services().database.transaction() as session:
            standing = request_drain(session, worker_id, actor(), tenant_id=tenant_id())
    except NotFound as error:
        return told_of(error, url_for("portal_workers.index"))
    return back_to(url_for("portal_workers.index"), f"{standing.worker.hostname} takes no more jobs, and ends.")


def _parts() -> str:
    with current_services().database.transaction() as session:
        workers, deployments = list_workers(session), list_deployments(session)
        return render_template(
            "admin/workers-parts.html", workers=workers, deployments=deployments, wanted=wanted_in_words
        )
