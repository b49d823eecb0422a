"""Tenants, people and API keys. Takes a session, never commits."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from penstock.auth.keys import check_key, digest_of, generate_key, hint_of
from penstock.auth.models import ApiKey, Tenant, User
from penstock.clock import iso
from penstock.errors import NotFound, Unauthenticated
from penstock.ids import new_id
from penstock.webhooks.signing import new_secret

_LAST_USE_PRECISION: Final = timedelta(minutes=1)
_BOOTSTRAP_LOCK: Final = 0x70656E73746F636B  # "penstock", in the database's space of advisory locks
_hasher: Final = PasswordHasher()


class Scope(StrEnum):
    """What a key may do. `admin` includes the others."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ADMIN = "admin"


class Role(StrEnum):
    """What a person may do in the portal."""

    MEMBER = "member"
    ADMIN = "admin"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request, and what they may do."""

    tenant_id: str
    key_id: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the key carries the scope, or `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What the first start made. The password and the key are nowhere else: show them once."""

    tenant_id: str
    email: str
    password: str
    api_key: str


def create_tenant(session: Session, name: str) -> Tenant:
    """A new organisation with a webhook secret of its own."""
    tenant = Tenant(id=new_id("ten"), name=name, webhook_secret=new_secret())
    session.add(tenant)
    session.flush()
    return tenant


def create_user(session: Session, *, tenant_id: str, email: str, password: str, role: Role = Role.MEMBER) -> User:
    """A person who signs in with `email` (in any case) and `password`, of which only an Argon2 hash is kept."""
    user = User(
        id=new_id("usr"),
        tenant_id=tenant_id,
        email=_normalised(email),
        password_hash=_hasher.hash(password),
        role=role.value,
    )
    session.add(user)
    session.flush()
    return user


def verify_password(session: Session, email: str, password: str) -> User | None:
    """The person, when address and password belong together; noted as signed in. Else None, after the same time."""
    user = session.scalars(select(User).where(User.email == _normalised(email))).one_or_none()
    if not _matches(user.password_hash if user else _nobodys_hash(), password) or user is None:
        return None
    if _hasher.check_needs_rehash(user.password_hash):
        user.password_hash = _hasher.hash(password)
    user.last_login_at = session.scalars(select(func.now())).one()
    return user


def create_api_key(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    scopes: Iterable[Scope],
    environment: str,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key's row and its secret text, which is shown once and kept nowhere."""
    secret = generate_key(environment)
    key = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        digest=digest_of(secret),
        hint=hint_of(secret),
        scopes=sorted(Scope(scope).value for scope in scopes),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def list_api_keys(session: Session, tenant_id: str) -> list[ApiKey]:
    """The tenant's keys, newest first, also those that no longer work."""
    return list(session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id.desc())))


def revoke_api_key(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """End a key for good; again changes nothing. Raises `NotFound`, also for another tenant's."""
    key = session.scalars(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if key is None:
        raise NotFound(f"no API key {key_id!r}", field="id")
    return key


def authenticate(session: Session, presented: str, *, environment: str) -> Principal:
    """Who presents this key. Raises `Unauthenticated`, saying whether it is mistyped, unknown, expired or revoked."""
    check_key(presented, environment)
    row = session.execute(select(ApiKey, func.now()).where(ApiKey.digest == digest_of(presented))).one_or_none()
    if row is None:
        raise Unauthenticated("no such API key: it may have been deleted, or belong to another installation")
    key, now = row
    if key.revoked_at is not None:
        raise Unauthenticated(f"the API key {key.hint} was revoked at {iso(key.revoked_at)}")
    if key.expires_at is not None and key.expires_at <= now:
        raise Unauthenticated(f"the API key {key.hint} expired at {iso(key.expires_at)}")
    if key.last_used_at is None or now - key.last_used_at >= _LAST_USE_PRECISION:
        _note_use(session, key.id)
    return Principal(key.tenant_id, key.id, frozenset(Scope(scope) for scope in key.scopes))


def bootstrap(session: Session, *, environment: str, email: str = "admin@localhost") -> Bootstrap | None:
    """Make the first tenant, its administrator and a key for everything; None when any tenant exists already."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BOOTSTRAP_LOCK})
    if session.scalar(select(Tenant.id).limit(1)) is not None:
        return None
    tenant = create_tenant(session, "default")
    password = secrets.token_urlsafe(15)
    create_user(session, tenant_id=tenant.id, email=email, password=password, role=Role.ADMIN)
    _, api_key = create_api_key(
        session, tenant_id=tenant.id, name="first key", scopes=tuple(Scope), environment=environment
    )
    return Bootstrap(tenant.id, _normalised(email), password, api_key)


@cache
def _nobodys_hash() -> str:
    """Checked when nobody has the address, so that the answer takes as long as for somebody who has."""
    return _hasher.hash(secrets.token_urlsafe())


def _normalised(email: str) -> str:
    return email.strip().lower()


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def _note_use(session: Session, key_id: str) -> None:
    # Whoever finds the row locked leaves it: another request is writing the same minute.
    stale = (
        select(ApiKey.id)
        .where(ApiKey.id == key_id, func.coalesce(ApiKey.last_used_at <= func.now() - _LAST_USE_PRECISION, True))
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(ApiKey)
        .where(ApiKey.id.in_(stale))
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )
