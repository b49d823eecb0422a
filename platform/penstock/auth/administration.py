"""Changes to who may do what: keys, people, tenants. Each checks that its actor may make it, and is written down.

Takes a session, never commits.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from penstock.auth.audit import Action, Actor, record
from penstock.auth.models import ApiKey, Tenant, User
from penstock.auth.services import (
    Role,
    Scope,
    create_api_key,
    create_tenant,
    create_user,
    get_api_key,
    get_tenant,
    get_user,
    hash_password,
    normalised_email,
    revoke_api_key,
)
from penstock.clock import iso, utc_now
from penstock.errors import (
    AlreadyExists,
    Forbidden,
    LastAdministrator,
    OwnTenant,
    TenantBeingErased,
    TenantNotSuspended,
    ValidationFailed,
)
from penstock.fairness.claimable import let_claim_again

_PASSWORD_BYTES: Final = 15
_ADMINISTRATORS: Final = (Role.ADMIN.value, Role.OPERATOR.value)


@dataclass(frozen=True, slots=True)
class UserChange:
    """What becomes different of a person; None stays as it is."""

    role: Role | None = None
    password: str | None = field(default=None, repr=False)
    disabled: bool | None = None


class Administration:
    """What one actor changes, in one transaction."""

    def __init__(self, session: Session, actor: Actor) -> None:
        self._session = session
        self._actor = actor

    def create_key(
        self,
        tenant_id: str,
        *,
        name: str,
        scopes: Collection[Scope],
        environment: str,
        expires_at: datetime | None = None,
        models: Collection[str] | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret text, which is shown once.

        Raises `Forbidden` for scopes and models that the actor lacks, `ValidationFailed` for an end that is past.
        """
        self._refuse_more_than_own(scopes, models)
        if expires_at is not None and expires_at <= utc_now():
            raise ValidationFailed("must lie in the future", field="expires_at")
        key, secret = create_api_key(
            self._session,
            tenant_id=tenant_id,
            name=name,
            scopes=scopes,
            environment=environment,
            expires_at=expires_at,
            models=models,
        )
        details = {"name": name, "scopes": key.scopes, "models": key.models, "expires_at": iso(expires_at)}
        self._record(Action.KEY_CREATED, tenant_id, key.id, details)
        return key, secret

    def revoke_key(self, tenant_id: str, key_id: str) -> ApiKey:
        """End a key for good; again changes nothing. Raises `NotFound`, and `Forbidden` for an operator's key."""
        key = get_api_key(self._session, tenant_id, key_id, for_update=True)
        if Scope.OPERATOR in key.scopes:
            self._require_operator("revoke an operator's key")
        if key.revoked_at is None:
            key = revoke_api_key(self._session, tenant_id, key_id)
            self._record(Action.KEY_REVOKED, tenant_id, key.id, {"name": key.name})
        return key

    def create_user(
        self, tenant_id: str, *, email: str, role: Role, password: str | None = None
    ) -> tuple[User, str | None]:
        """A new person, and the password that was made for them if none was given.

        Raises `AlreadyExists` when somebody has the address, `Forbidden` when others than operators make an operator.
        """
        self._guard_role(role)
        made = secrets.token_urlsafe(_PASSWORD_BYTES) if password is None else None
        try:
            with self._session.begin_nested():
                user = create_user(
                    self._session, tenant_id=tenant_id, email=email, password=password or made or "", role=role
                )
        except IntegrityError:
            raise AlreadyExists(f"somebody signs in as {normalised_email(email)!r} already", field="email") from None
        self._record(Action.USER_CREATED, tenant_id, user.id, {"email": user.email, "role": role.value})
        return user, made

    def change_user(self, tenant_id: str, user_id: str, change: UserChange) -> User:
        """Give a person another role or password, shut them out or let them in again. Each ends what it contradicts:
        a new password and shutting out end all of the person's sessions.

        Raises `NotFound`, `Forbidden` where operators are concerned, and `LastAdministrator`.
        """
        user = self._user(tenant_id, user_id)
        self._guard_role(change.role)
        before = _standing(user)
        if change.role is not None:
            user.role = change.role.value
        if change.disabled is not None and change.disabled != (user.disabled_at is not None):
            user.disabled_at = utc_now() if change.disabled else None
        if change.password is not None:
            user.password_hash = hash_password(change.password)
        self._keep_an_administrator(tenant_id, before)
        details = _difference(before, _standing(user)) | ({"password": "changed"} if change.password else {})
        if details:
            self._record(Action.USER_CHANGED, tenant_id, user.id, details)
        return user

    def remove_user(self, tenant_id: str, user_id: str) -> None:
        """Delete a person; what they did stays in the record. Raises as `change_user` does."""
        user = self._user(tenant_id, user_id)
        before = _standing(user)
        self._session.delete(user)
        self._keep_an_administrator(tenant_id, before)
        self._record(Action.USER_REMOVED, tenant_id, user_id, {"email": user.email, "role": user.role})

    def create_tenant(self, name: str, **limits: Any) -> Tenant:
        """A new organisation. Raises `AlreadyExists` when one has the name."""
        self._require_operator("make tenants")
        try:
            with self._session.begin_nested():
                tenant = create_tenant(self._session, name)
                self._set(tenant, limits)
                self._session.flush()
        except IntegrityError:
            raise AlreadyExists(f"there is a tenant named {name!r} already", field="name") from None
        self._record(Action.TENANT_CREATED, tenant.id, tenant.id, {"name": name, **limits})
        return tenant

    def change_tenant(self, tenant_id: str, **changes: Any) -> Tenant:
        """Set columns of the tenant by name. Raises `NotFound` and `AlreadyExists`."""
        tenant = self._operators(tenant_id, "change tenants")
        before = {name: getattr(tenant, name) for name in changes}
        name = changes.get("name", tenant.name)
        try:
            with self._session.begin_nested():
                self._set(tenant, changes)
                self._session.flush()
        except IntegrityError:
            raise AlreadyExists(f"there is a tenant named {name!r} already", field="name") from None
        if details := _difference(before, changes):
            self._record(Action.TENANT_CHANGED, tenant_id, tenant_id, details)
        return tenant

    def suspend_tenant(self, tenant_id: str) -> Tenant:
        """Refuse the tenant's keys and people, and claim none of its waiting jobs, until it is resumed.

        Again changes nothing. Raises `NotFound`, and `OwnTenant` where the actor is of that tenant.
        """
        tenant = self._operators(tenant_id, "suspend tenants")
        if tenant_id == self._actor.tenant_id:
            raise OwnTenant("you act in this tenant: suspended, it could not be resumed by you", field="id")
        if tenant.suspended_at is None:
            tenant.suspended_at = self._session.scalars(select(func.now())).one()
            self._record(Action.TENANT_SUSPENDED, tenant_id, tenant_id, {})
        return tenant

    def resume_tenant(self, tenant_id: str) -> Tenant:
        """End its suspension; what waits is rung for. Again changes nothing. Raises `TenantBeingErased`."""
        tenant = self._operators(tenant_id, "resume tenants")
        if tenant.erasing_since is not None:
            raise TenantBeingErased(f"{tenant_id} is being erased since {iso(tenant.erasing_since)}", field="id")
        if tenant.suspended_at is not None:
            tenant.suspended_at = None
            self._session.flush()
            let_claim_again(self._session, tenant_id)
            self._record(Action.TENANT_RESUMED, tenant_id, tenant_id, {})
        return tenant

    def erase_tenant(self, tenant_id: str) -> Tenant:
        """Have a suspended tenant deleted with all that it has, by the control processes (`penstock.retention`).

        The entry that this writes is all that will be left. Again changes nothing. Raises `TenantNotSuspended`.
        """
        tenant = self._operators(tenant_id, "erase tenants")
        if tenant.suspended_at is None:
            raise TenantNotSuspended(f"{tenant_id} is not suspended; suspend it first", field="id")
        if tenant.erasing_since is None:
            tenant.erasing_since = self._session.scalars(select(func.now())).one()
            self._record(Action.TENANT_ERASED, tenant_id, tenant_id, {})
        return tenant

    def _operators(self, tenant_id: str, what: str) -> Tenant:
        """The tenant, locked, for an operator alone."""
        self._require_operator(what)
        return get_tenant(self._session, tenant_id, for_update=True)

    def _user(self, tenant_id: str, user_id: str) -> User:
        """The tenant's person, with the tenant locked: of two that end each other's rights one comes second."""
        get_tenant(self._session, tenant_id, for_update=True)
        user = get_user(self._session, tenant_id, user_id)
        self._guard_role(Role(user.role))
        return user

    def _keep_an_administrator(self, tenant_id: str, before: dict[str, Any]) -> None:
        if before["role"] not in _ADMINISTRATORS or before["disabled"]:
            return
        self._session.flush()
        left = self._session.scalar(
            select(func.count()).where(
                User.tenant_id == tenant_id, User.role.in_(_ADMINISTRATORS), User.disabled_at.is_(None)
            )
        )
        if not left:
            raise LastAdministrator("nobody would be left to administer the tenant; make somebody else an admin first")

    def _refuse_more_than_own(self, scopes: Collection[Scope], models: Collection[str] | None) -> None:
        lacking = [scope.value for scope in scopes if not self._actor.may(scope)]
        if lacking:
            raise Forbidden(f"only who has a scope can give it; you lack {', '.join(lacking)}", field="scopes")
        own = self._actor.models
        if own is not None and (models is None or not set(models) <= set(own)):
            raise Forbidden(f"your key may use {', '.join(sorted(own))} alone; give some of these", field="models")

    def _guard_role(self, role: Role | None) -> None:
        if role is Role.OPERATOR:
            self._require_operator("make or change an operator")

    def _require_operator(self, what: str) -> None:
        if not self._actor.may(Scope.OPERATOR):
            raise Forbidden(f"only an operator may {what}", scope=Scope.OPERATOR.value)

    def _set(self, tenant: Tenant, columns: dict[str, Any]) -> None:
        for name, value in columns.items():
            setattr(tenant, name, value)

    def _record(self, action: Action, tenant_id: str, target: str, details: dict[str, Any]) -> None:
        record(self._session, self._actor, action, tenant_id=tenant_id, target=target, details=details)


def _standing(user: User) -> dict[str, Any]:
    return {"role": user.role, "disabled": user.disabled_at is not None}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What changed, as `{name: {"from": ..., "to": ...}}`."""
    return {name: {"from": before[name], "to": after[name]} for name in before if before[name] != after[name]}
