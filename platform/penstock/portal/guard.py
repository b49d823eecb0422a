"""What stands before every view of the portal: the form's token on writes, and a signed-in person."""

from typing import cast

from flask import Response, g, redirect, request, url_for
from flask_wtf.csrf import CSRFProtect
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.models import User
from penstock.portal.sessions import signed_in_user
from penstock.services import current_services

csrf = CSRFProtect()


def check_form() -> None:
    """Refuse a write that no page of ours sent."""
    csrf.protect()


def guard() -> AnyResponse | None:
    """Let signed-in people through; everybody else signs in first and then comes back."""
    with current_services().database.transaction() as session:
        g.user = signed_in_user(session)
    if g.user is not None:
        return None
    here = request.full_path.rstrip("?") if request.method == "GET" else None
    if request.headers.get("HX-Request"):  # a part of a page: the whole page must go
        return Response(status=401, headers={"HX-Redirect": url_for("portal_account.sign_in")})
    return redirect(url_for("portal_account.sign_in", next=here))


def current_user() -> User | None:
    """Who is signed in, once `guard` has looked."""
    return cast(User | None, g.get("user"))


def tenant_id() -> str:
    """The tenant of the signed-in person, behind `guard`."""
    user = current_user()
    assert user is not None, "the view stands behind no guard"
    return user.tenant_id
