"""Who is signed in: a signed cookie that names the person and seals their password hash.

The seal ends every session of a person whose password changes. Flask's own signed sessions are all that this needs.
"""

import hashlib
import hmac
from typing import Final

from flask import session as cookie
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant, User

_USER: Final = "user"
_SEAL: Final = "seal"


def sign_in(user: User) -> None:
    """Begin a session in place of whatever the cookie held."""
    cookie.clear()
    cookie.permanent = True
    cookie.update(session_of(user))


def session_of(user: User) -> dict[str, str]:
    """What the cookie of a session of this person holds."""
    return {_USER: user.id, _SEAL: _seal(user)}


def sign_out() -> None:
    """End the session."""
    cookie.clear()


def signed_in_user(session: Session) -> User | None:
    """The person the cookie names, if they still exist with the same password and may come in."""
    user_id, seal = cookie.get(_USER), cookie.get(_SEAL)
    if not isinstance(user_id, str) or not isinstance(seal, str):
        return None
    found = session.execute(
        select(User, Tenant.suspended_at).join(Tenant, Tenant.id == User.tenant_id).where(User.id == user_id)
    ).one_or_none()
    if found is None or found.suspended_at is not None or found.User.disabled_at is not None:
        return None
    user: User = found.User
    return user if hmac.compare_digest(seal, _seal(user)) else None


def safe_destination(wanted: str | None) -> str | None:
    """`wanted` if it is a path on this site, else None: signing in must not send anyone elsewhere."""
    if not wanted or not wanted.startswith("/") or wanted.startswith(("//", "/\\")):
        return None
    return None if any(ord(character) < 0x20 for character in wanted) or "\\" in wanted else wanted


def _seal(user: User) -> str:
    return hashlib.sha256(f"{user.id}\0{user.password_hash or user.oidc_subject}".encode()).hexdigest()[:32]
