"""Tenants, people and API keys. Takes a session, never commits."""

import secrets
from collections.abc import Collection, Iterable
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
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.clock import iso
from penstock.errors import NotFound, TenantSuspended, Unauthenticated
from penstock.ids import new_id
from penstock.webhooks.signing import new_secret

_LAST_USE_PRECISION: Final = timedelta(minutes=1)
_BOOTSTRAP_LOCK: Final = 0x70656E73746F636B  # "penstock", in the database's space of advisory locks
_hasher: Final = PasswordHasher()


class Scope(StrEnum):
    """What a key may do. `admin` (of its tenant) includes the jobs, `operator` (of the installation) everything."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ADMIN = "admin"
    OPERATOR = "operator"


class Role(StrEnum):
    """What a person may do: use the tenant's jobs, administer the tenant, run the installation."""

    MEMBER = "member"
    ADMIN = "admin"
    OPERATOR = "operator"


def includes(scopes: Collection[Scope], wanted: Scope) -> bool:
    """Whether the scopes allow what `wanted` does."""
    if wanted in scopes or Scope.OPERATOR in scopes:
        return True
    return Scope.ADMIN in scopes and wanted is not Scope.OPERATOR


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """A tenant's own limits; None is the installation's."""

    max_queued_jobs: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_open_streams: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request, and what they may do. `models` are those they may use; None is all."""

    tenant_id: str
    key_id: str
    key_name: str
    scopes: frozenset[Scope]
    models: frozenset[str] | None
    limits: TenantLimits

    def may(self, scope: Scope) -> bool:
        """Whether the key carries the scope, or one that includes it."""
        return includes(self.scopes, scope)

    def may_use(self, model_name: str) -> bool:
        """Whether the key is for that model."""
        return self.models is None or model_name in self.models


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


def hash_password(password: str) -> str:
    """The Argon2 hash that is kept of a password."""
    return _hasher.hash(password)


def create_user(session: Session, *, tenant_id: str, email: str, password: str, role: Role = Role.MEMBER) -> User:
    """A person who signs in with `email` (in any case) and `password`, of which only an Argon2 hash is kept."""
    user = User(
        id=new_id("usr"),
        tenant_id=tenant_id,
        email=normalised_email(email),
        password_hash=hash_password(password),
        role=role.value,
    )
    session.add(user)
    session.flush()
    return user


def kept_password(session: Session, email: str) -> str | None:
    """The hash that is kept of this person's password; None for nobody, and for who was shut out or has none."""
    return session.scalars(
        select(User.password_hash).where(User.email == normalised_email(email), User.disabled_at.is_(None))
    ).one_or_none()


def check_password(kept: str | None, password: str) -> str | None:
    """The hash to keep from now on, when this is the password that `kept` is the hash of; else None, as late.

    Argon2 takes long on purpose, and longer where cores are scarce: ask outside of a transaction, whose connection
    others wait for and which the server ends when nothing comes.
    """
    try:
        _hasher.verify(kept or _nobodys_hash(), password)
    except (VerificationError, InvalidHashError):
        return None
    return kept if kept is None or not _hasher.check_needs_rehash(kept) else _hasher.hash(password)


def admit(session: Session, email: str, *, checked: str, keep: str) -> User | None:
    """The person whose password fitted the hash `checked`, noted as signed in; None if it has changed since.

    Raises `TenantSuspended`.
    """
    user = session.scalars(
        select(User).where(
            User.email == normalised_email(email), User.password_hash == checked, User.disabled_at.is_(None)
        )
    ).one_or_none()
    if user is None:
        return None
    refuse_suspended(get_tenant(session, user.tenant_id))
    user.password_hash = keep
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
    models: Iterable[str] | None = None,
) -> tuple[ApiKey, str]:
    """A new key's row and its secret text, which is shown once and kept nowhere."""
    secret = generate_key(environment)
    key = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        digest=digest_of(secret),
        hint=hint_of(secret),
        scopes=sorted({Scope(scope).value for scope in scopes}),
        expires_at=expires_at,
        models=sorted(set(models)) if models is not None else None,
    )
    session.add(key)
    session.flush()
    return key, secret


def get_tenant(session: Session, tenant_id: str, *, for_update: bool = False) -> Tenant:
    """The tenant as it is now. Raises `NotFound`."""
    tenant = session.get(Tenant, tenant_id, with_for_update=for_update or None, populate_existing=for_update)
    if tenant is None or tenant.id == SYSTEM_TENANT_ID:
        raise NotFound(f"no tenant {tenant_id!r}", field="id")
    return tenant


def refuse_suspended(tenant: Tenant) -> None:
    """Raise `TenantSuspended` while the tenant is."""
    if tenant.suspended_at is not None:
        raise TenantSuspended(f"the tenant was suspended at {iso(tenant.suspended_at)}; ask an operator")


def get_user(session: Session, tenant_id: str, user_id: str) -> User:
    """The tenant's person. Raises `NotFound`, also for another tenant's."""
    user = session.scalars(select(User).where(User.id == user_id, User.tenant_id == tenant_id)).one_or_none()
    if user is None:
        raise NotFound(f"no user {user_id!r}", field="id")
    return user


def get_api_key(session: Session, tenant_id: str, key_id: str, *, for_update: bool = False) -> ApiKey:
    """The tenant's key. Raises `NotFound`, also for another tenant's."""
    query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)
    key = session.scalars(query.with_for_update() if for_update else query).one_or_none()
    if key is None:
        raise NotFound(f"no API key {key_id!r}", field="id")
    return key


def limits_of(tenant: Tenant) -> TenantLimits:
    """The limits that the tenant has of its own."""
    return TenantLimits(
        tenant.max_queued_jobs, tenant.requests_per_minute, tenant.tokens_per_minute, tenant.max_open_streams
    )


def list_users(session: Session, tenant_id: str) -> list[User]:
    """The tenant's people by address, also those who were shut out."""
    return list(session.scalars(select(User).where(User.tenant_id == tenant_id).order_by(User.email)))


def list_tenants(session: Session) -> list[Tenant]:
    """Every tenant, by name; the system's own is none of them."""
    return list(session.scalars(select(Tenant).where(Tenant.id != SYSTEM_TENANT_ID).order_by(Tenant.name)))


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
    """Who presents this key.

    Raises `Unauthenticated`, saying whether it is mistyped, unknown, expired or revoked, and `TenantSuspended`.
    """
    check_key(presented, environment)
    row = session.execute(
        select(ApiKey, Tenant, func.now()).join(Tenant).where(ApiKey.digest == digest_of(presented))
    ).one_or_none()
    if row is None:
        raise Unauthenticated("no such API key: it may have been deleted, or belong to another installation")
    key, tenant, now = row
    if key.revoked_at is not None:
        raise Unauthenticated(f"the API key {key.hint} was revoked at {iso(key.revoked_at)}")
    if key.expires_at is not None and key.expires_at <= now:
        raise Unauthenticated(f"the API key {key.hint} expired at {iso(key.expires_at)}")
    refuse_suspended(tenant)
    if key.last_used_at is None or now - key.last_used_at >= _LAST_USE_PRECISION:
        _note_use(session, key.id)
    return Principal(
        tenant_id=key.tenant_id,
        key_id=key.id,
        key_name=key.name,
        scopes=frozenset(map(Scope, key.scopes)),
        models=frozenset(key.models) if key.models is not None else None,
        limits=limits_of(tenant),
    )


def bootstrap(session: Session, *, environment: str, email: str = "admin@localhost") -> Bootstrap | None:
    """Make the first tenant, its operator and a key for everything; None when any tenant exists already."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BOOTSTRAP_LOCK})
    if session.scalar(select(Tenant.id).where(Tenant.id != SYSTEM_TENANT_ID).limit(1)) is not None:
        return None
    tenant = create_tenant(session, "default")
    password = secrets.token_urlsafe(15)
    create_user(session, tenant_id=tenant.id, email=email, password=password, role=Role.OPERATOR)
    _, api_key = create_api_key(
        session, tenant_id=tenant.id, name="first key", scopes=tuple(Scope), environment=environment
    )
    return Bootstrap(tenant.id, normalised_email(email), password, api_key)


@cache
def _nobodys_hash() -> str:
    """Checked when nobody has the address, so that the answer takes as long as for somebody who has."""
    return _hasher.hash(secrets.token_urlsafe())


def normalised_email(email: str) -> str:
    """The address as it is kept and looked up: letters' case does not tell people apart."""
    return email.strip().lower()


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
