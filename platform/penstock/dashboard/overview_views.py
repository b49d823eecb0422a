"""The overview: figures of this moment, and charts from the last hour to the last thirty days."""

from typing import Final

from flask import Response, jsonify, render_template, request

from penstock.clock import utc_now
from penstock.dashboard.charts import CHARTS, RANGES, chart_document
from penstock.dashboard.figures import figures_now
from penstock.dashboard.gate import operators_pages
from penstock.errors import NotFound
from penstock.services import current_services

blueprint: Final = operators_pages("portal_overview", __name__, "")


@blueprint.get("/")
def index() -> str:
    """How the installation goes."""
    length = _range()
    return render_template("admin/overview.html", figures=_figures(), charts=CHARTS, ranges=RANGES, shown=length)


@blueprint.get("/figures")
def figures() -> str:
    """The figures alone, for a page that is open."""
    return _figures()


@blueprint.get("/charts/<name>")
def chart(name: str) -> Response:
    """What one chart draws (`js/charts.js`)."""
    if name not in CHARTS:
        raise NotFound(f"there is no chart {name!r}; there are {', '.join(CHARTS)}")
    with current_services().database.transaction() as session:
        return jsonify(chart_document(session, CHARTS[name], utc_now(), RANGES[_range()]))


def _figures() -> str:
    with current_services().database.transaction() as session:
        return render_template("admin/figures.html", now=figures_now(session, utc_now()))


def _range() -> str:
    wanted = request.args.get("range", "")
    return wanted if wanted in RANGES else "1h"
