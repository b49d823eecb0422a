"""Signing in through the identity provider, where one is configured."""

from typing import Final, cast

from flask import Blueprint, current_app, redirect, request, session, url_for
from sqlalchemy import func, select
from werkzeug.wrappers import Response

from penstock.auth.acting import note_sign_in
from penstock.auth.oidc import OidcProvider, find_or_let_in
from penstock.errors import PenstockError
from penstock.logs import get_logger
from penstock.portal.account_views import sign_in_form
from penstock.portal.sessions import safe_destination
from penstock.portal.sessions import sign_in as begin_session
from penstock.services import current_services

EXTENSION: Final = "penstock.oidc"
_NEXT: Final = "after_sign_in"
blueprint = Blueprint("portal_oidc", __name__, url_prefix="/sign-in/oidc")
log = get_logger(__name__)


@blueprint.get("")
def leave() -> tuple[str, int] | Response:
    """To the provider."""
    session[_NEXT] = safe_destination(request.args.get("next"))
    try:
        return _provider().send_there(_callback())
    except PenstockError as error:
        return _refused(error)


@blueprint.get("/callback")
def come_back() -> tuple[str, int] | Response:
    """From the provider, as somebody."""
    onward = safe_destination(session.pop(_NEXT, None))
    services = current_services()
    try:
        identity = _provider().who_came_back()
        with services.database.transaction() as database:
            user = find_or_let_in(database, identity, tenant_name=services.settings.oidc_tenant)
            user.last_login_at = database.scalars(select(func.now())).one()
            note_sign_in(database, user, through=identity.issuer)
    except PenstockError as error:
        return _refused(error)
    begin_session(user)
    log.info("sign_in.succeeded", user=user.id)
    return redirect(onward or url_for("portal_jobs.index"), 303)


def _provider() -> OidcProvider:
    return cast(OidcProvider, current_app.extensions[EXTENSION])


def _callback() -> str:
    public = current_services().settings.public_url
    path = url_for("portal_oidc.come_back")
    return f"{public.rstrip('/')}{path}" if public else url_for("portal_oidc.come_back", _external=True)


def _refused(error: PenstockError) -> tuple[str, int]:
    log.warning("sign_in.refused", address=request.remote_addr, code=error.code)
    return sign_in_form("", f"{error.message[:1].upper()}{error.message[1:]}."), error.status
