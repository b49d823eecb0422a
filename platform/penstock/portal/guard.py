"""What stands before every view of the portal: the form's token on writes, and a signed-in person."""

from dataclasses import dataclass
from typing import Final, cast

from flask import Response, g, redirect, request, url_for
from flask_wtf.csrf import CSRFProtect
from werkzeug.wrappers import Response as AnyResponse

from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import User
from penstock.auth.services import Role, Scope, includes
from penstock.errors import Forbidden
from penstock.portal.sessions import signed_in_user
from penstock.services import current_services


class _FormToken(CSRFProtect):  # type: ignore[misc]  # Flask-WTF has no types
    """Looks into the header first, so that a file on its way in is not read as a form."""

    def _get_csrf_token(self) -> str | None:
        token: str | None = request.headers.get("X-CSRFToken") or super()._get_csrf_token()
        return token


@dataclass(frozen=True, slots=True)
class Member:
    """A signed-in person as the owner of what they make: of their tenant, without a key, free to use all models."""

    tenant_id: str
    key_id: None = None
    models: None = None


csrf = _FormToken()
_SCOPES: Final = {
    Role.MEMBER: (Scope.JOBS_READ, Scope.JOBS_WRITE),
    Role.ADMIN: (Scope.ADMIN,),
    Role.OPERATOR: (Scope.OPERATOR,),
}
_DEEDS: Final = {
    Scope.JOBS_READ: "read jobs",
    Scope.JOBS_WRITE: "submit jobs",
    Scope.ADMIN: "administer the tenant",
    Scope.OPERATOR: "run the installation",
}


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


def may(scope: Scope) -> bool:
    """Whether the signed-in person's role allows what a key of that scope may do."""
    user = current_user()
    return user is not None and includes(_SCOPES[Role(user.role)], scope)


def require(scope: Scope) -> None:
    """Raise `Forbidden` unless `may(scope)`."""
    if not may(scope):
        raise Forbidden(f"this page is for people who may {_DEEDS[scope]}; ask an administrator", scope=scope.value)


def actor() -> Actor:
    """Who acts, for the record of changes: the signed-in person, who hands out no more than their role has."""
    user = current_user()
    assert user is not None, "the view stands behind no guard"
    scopes = _SCOPES[Role(user.role)]
    return Actor(ActorKind.USER, user.id, user.email, request.remote_addr, scopes=scopes, tenant_id=user.tenant_id)
