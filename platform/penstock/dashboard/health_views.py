"""Health: what the installation stands on, the outbox, webhooks, and the metrics' own progress."""

from typing import Final

from flask import render_template, url_for
from werkzeug.wrappers import Response

from penstock.dashboard.gate import live, operators_pages, part
from penstock.dashboard.wellness import wellness
from penstock.health import standing
from penstock.services import current_services

blueprint: Final = operators_pages("portal_health", __name__, "/health")


@blueprint.get("")
def index() -> str:
    """Each part with the reason where it is not well."""
    return render_template("admin/health.html", parts=part(_parts(), url_for("portal_health.parts")))


@blueprint.get("/parts")
def parts() -> str | Response:
    """What changes of the page, for one that is open; 204 while nothing has."""
    return live(_parts(), url_for("portal_health.parts"))


def _parts() -> str:
    services = current_services()
    found = standing(services)
    with services.database.transaction() as session:
        return render_template("admin/health-parts.html", found=found, now=wellness(session))
