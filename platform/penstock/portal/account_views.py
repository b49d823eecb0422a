"""Signing in and out, and the portal's front door."""

from typing import cast

from flask import Blueprint, current_app, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from penstock.auth.acting import note_sign_in
from penstock.auth.models import User
from penstock.auth.services import admit, check_password, kept_password
from penstock.errors import QuotaExceeded, TenantSuspended
from penstock.logs import get_logger
from penstock.portal.guard import check_form
from penstock.portal.sessions import safe_destination, signed_in_user
from penstock.portal.sessions import sign_in as begin_session
from penstock.portal.sessions import sign_out as end_session
from penstock.portal.throttle import SignInThrottle
from penstock.services import current_services

blueprint = Blueprint("portal_account", __name__)
blueprint.before_request(check_form)
log = get_logger(__name__)


@blueprint.get("/")
def front_door() -> Response:
    """To the jobs, by way of signing in where that is needed."""
    return redirect(url_for("portal_jobs.index"))


@blueprint.get("/sign-in")
def sign_in() -> str | Response:
    """The form; whoever is signed in already goes on."""
    with current_services().database.transaction() as session:
        user = signed_in_user(session)
    return _onward() if user is not None else sign_in_form("", None)


@blueprint.post("/sign-in")
def submit_sign_in() -> tuple[str, int] | Response:
    """Check address and password; wrong ones are answered alike, and slowed down."""
    email, password, address = (
        request.form.get("email", ""),
        request.form.get("password", ""),
        request.remote_addr or "",
    )
    throttle = cast(SignInThrottle, current_app.extensions["penstock.sign_in_throttle"])
    try:
        throttle.check(email, address)
    except QuotaExceeded as error:
        log.warning("sign_in.throttled", address=address)
        return sign_in_form(email, error.message), error.status
    try:
        user = _known(email, password)
    except TenantSuspended as error:
        log.warning("sign_in.refused", address=address, code=error.code)
        return sign_in_form(email, f"{error.message[:1].upper()}{error.message[1:]}."), error.status
    if user is None:
        throttle.failed(email, address)
        log.warning("sign_in.refused", address=address)
        return sign_in_form(email, "Email and password do not belong together."), 401
    throttle.succeeded(email, address)
    begin_session(user)
    log.info("sign_in.succeeded", user=user.id)
    return _onward()


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session."""
    end_session()
    return redirect(url_for("portal_account.sign_in"))


def _known(email: str, password: str) -> User | None:
    """The person, when address and password belong together; written down as signed in."""
    database = current_services().database
    with database.transaction() as session:
        kept = kept_password(session, email)
    keep = check_password(kept, password)
    if kept is None or keep is None:
        return None
    with database.transaction() as session:
        user = admit(session, email, checked=kept, keep=keep)
        if user is not None:
            note_sign_in(session, user, through="password")
    return user


def _onward() -> Response:
    return redirect(safe_destination(request.args.get("next")) or url_for("portal_jobs.index"), 303)


def sign_in_form(email: str, error: str | None) -> str:
    """The form, with what was wrong."""
    settings = current_services().settings
    provider = settings.oidc_name if settings.oidc_issuer is not None else None
    onward = safe_destination(request.args.get("next"))
    return render_template("portal/sign-in.html", email=email, error=error, provider=provider, onward=onward)
