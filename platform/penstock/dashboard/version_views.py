"""One version of a model: where it is wanted, where it is, and having it elsewhere."""

from typing import Any, Final

from flask import render_template, request, url_for
from pydantic import ValidationError
from werkzeug.wrappers import Response

from penstock.dashboard.gate import back_to, live, operators_pages, part
from penstock.dashboard.hosting import placed, wanted_in_words
from penstock.deployments.placement import Desired
from penstock.deployments.schemas import PlacementRequest
from penstock.deployments.services import place
from penstock.portal.fields import errors_of, number_or_text
from penstock.portal.guard import actor, tenant_id
from penstock.problems import explain_validation
from penstock.services import current_services

blueprint: Final = operators_pages("portal_versions", __name__, "/models/<name>/versions/<version>")
_NUMBERS: Final = ("replicas", "kv_share", "idle_seconds")


@blueprint.get("")
def show(name: str, version: str) -> str:
    """How the version is hosted, and the form that says how it should be."""
    return _page(name, version, {}, {})


@blueprint.get("/parts")
def parts(name: str, version: str) -> str | Response:
    """What changes of the page, for one that is open; 204 while nothing has."""
    return live(_parts(name, version), url_for("portal_versions.parts", name=name, version=version))


@blueprint.post("")
def change(name: str, version: str) -> tuple[str, int] | Response:
    """Say where and how it is to be hosted; the API's own checks, their errors at the fields."""
    given = {each: request.form.get(each, "").strip() for each in ("workers", "mode", *_NUMBERS)}
    try:
        asked = PlacementRequest.model_validate(_members(given), strict=False)
    except ValidationError as error:
        return _page(name, version, given, errors_of(explain_validation(error))), 422
    with current_services().database.transaction() as session:
        deployment = placed(session, name, version).standing.deployment
        place(session, deployment.id, asked.desired(), actor(), tenant_id=tenant_id())
    here = url_for("portal_versions.show", name=name, version=version)
    return back_to(here, f"Wanted on {wanted_in_words(asked.desired())}. Workers follow within seconds.")


def _members(given: dict[str, str]) -> dict[str, Any]:
    """The form as the API's request; what is empty is left out, and so has its default."""
    names = [each.strip() for each in given["workers"].split(",") if each.strip()]
    numbers = {each: number_or_text(given[each]) for each in _NUMBERS if given[each]}
    return numbers | ({"workers": names} if names else {}) | ({"mode": given["mode"]} if given["mode"] else {})


def _page(name: str, version: str, given: dict[str, str], errors: dict[str, str]) -> str:
    with current_services().database.transaction() as session:
        desired = placed(session, name, version).standing.desired
    return render_template(
        "admin/version.html",
        name=name, version=version, values=_values(desired) | given, errors=errors,
        parts=part(_parts(name, version), url_for("portal_versions.parts", name=name, version=version)),
    )  # fmt: skip


def _values(desired: Desired) -> dict[str, str]:
    """What is wanted now, as the form's fields write it."""
    numbers = {each: getattr(desired, each) for each in _NUMBERS}
    written = {each: "" if number is None else f"{number:g}" for each, number in numbers.items()}
    return written | {"workers": ", ".join(desired.workers or ()), "mode": desired.mode.value}


def _parts(name: str, version: str) -> str:
    with current_services().database.transaction() as session:
        found = placed(session, name, version)
        return render_template("admin/version-parts.html", found=found, wanted=wanted_in_words(found.standing.desired))
