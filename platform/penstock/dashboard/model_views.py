"""Models and their versions."""

from typing import Final

from flask import render_template

from penstock.dashboard.beginning import candidates
from penstock.dashboard.frontier import HEIGHT, WIDTH, frontier
from penstock.dashboard.gate import operators_pages
from penstock.dashboard.hosting import wanted_in_words
from penstock.dashboard.lineage import model_names, versions_of
from penstock.errors import NotFound
from penstock.registry.catalogue import list_models
from penstock.services import current_services

blueprint: Final = operators_pages("portal_models", __name__, "/models")


@blueprint.get("")
def index() -> str:
    """Every model: who serves, who challenges, and why."""
    with current_services().database.transaction() as session:
        return render_template("admin/models.html", models=list_models(session), names=model_names(session))


@blueprint.get("/<name>")
def show(name: str) -> str:
    """One model's versions: lineage, recipe, quality against bytes, and the gates that each has passed."""
    with current_services().database.transaction() as session:
        lines = versions_of(session, name)
        if not lines:
            raise NotFound(f"there is no model {name!r}")
        standing = next((each for each in list_models(session) if each.name == name), None)
        picture = frontier(lines)
        startable = {each.version for each in candidates(session) if each.model == name}
        return render_template(
            "admin/model.html",
            name=name, lines=lines, wanted=wanted_in_words, standing=standing, startable=startable,
            picture=picture, width=WIDTH, height=HEIGHT,
        )  # fmt: skip
