"""What stands before every view of the dashboard: the form's token on writes, a signed-in person, and their role."""

import hashlib

from flask import Blueprint, Response, flash, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.services import Scope
from penstock.errors import PenstockError
from penstock.portal.guard import check_form, guard, require


def operators_pages(name: str, module: str, prefix: str) -> Blueprint:
    """A blueprint of pages for operators alone; others are refused as by the API (403)."""
    blueprint = Blueprint(name, module, url_prefix=f"/admin{prefix}")
    blueprint.before_request(check_form)
    blueprint.before_request(guard)
    blueprint.before_request(_operators_alone)
    return blueprint


def part(html: str, address: str) -> str:
    """A part of a page that is kept live: it asks the address again and again, and says what it has (`seen`)."""
    return render_template("admin/live.html", html=html, address=address, seen=_digest(html))


def live(html: str, address: str) -> Response | str:
    """The same for a page that is open: nothing (204) while it has just this."""
    return Response(status=204) if request.args.get("seen") == _digest(html) else part(html, address)


def back_to(address: str, done: str) -> AnyResponse:
    """To the page after a write, which tells what was done."""
    flash(done, "good")
    return redirect(address, 303)


def told_of(error: PenstockError, address: str) -> AnyResponse:
    """To the page after a write that was refused, which tells why."""
    flash(f"{error.message[:1].upper()}{error.message[1:]}", "bad")
    return redirect(address, 303)


def _digest(html: str) -> str:
    return hashlib.sha256(html.encode()).hexdigest()[:16]


def _operators_alone() -> None:
    require(Scope.OPERATOR)
