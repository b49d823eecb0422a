"""How keys, people, tenants and entries of the record look from outside, and the documents of their rows."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.auth.models import ApiKey, AuditEntry, Tenant, User
from penstock.auth.services import Role, Scope
from penstock.clock import iso


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KeyDocument(_Document):
    """An API key, without its secret."""

    id: str
    object: Literal["api_key"]
    name: str
    hint: str = Field(description="Enough of it to recognise it by")
    scopes: list[Scope]
    models: list[str] | None = Field(description="The models that it may use; null is all")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")


class NewKeyDocument(KeyDocument):
    """A key that was just made."""

    key: str = Field(description="The key itself: shown this once and kept nowhere")


class UserDocument(_Document):
    """A person who signs in to the portal."""

    id: str
    object: Literal["user"]
    email: str
    role: Role
    disabled: bool = Field(description="Whether they were shut out")
    created_at: datetime
    last_login_at: datetime | None


class NewUserDocument(UserDocument):
    """A person who was just let in."""

    password: str | None = Field(description="The password that was made for them, shown this once")


class TenantDocument(_Document):
    """An organisation. A limit or retention that is null is the installation's."""

    id: str
    object: Literal["tenant"]
    name: str
    weight: float
    max_queued_jobs: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_open_streams: int | None
    retain_jobs_days: int | None
    retain_events_days: int | None
    retain_deliveries_days: int | None
    retain_files_days: int | None
    retain_usage_days: int | None
    created_at: datetime
    suspended_at: datetime | None = Field(description="Since when its keys and people are refused")
    erasing_since: datetime | None = Field(description="Since when it is being erased; at the end it answers 404")


class ActorDocument(_Document):
    """Who acted, and through what."""

    kind: Literal["api_key", "user", "command", "system"]
    id: str
    name: str


class AuditEntryDocument(_Document):
    """One change."""

    id: str
    object: Literal["audit_entry"]
    tenant_id: str
    actor: ActorDocument
    address: str | None = Field(description="Where the request came from")
    action: str
    target: str = Field(description="The id of what was changed")
    details: dict[str, Any]
    created_at: datetime


class KeyList(_Document):
    """All keys, newest first."""

    object: Literal["list"]
    data: list[KeyDocument]


class UserList(_Document):
    """All people, by address."""

    object: Literal["list"]
    data: list[UserDocument]


class TenantList(_Document):
    """All tenants, by name."""

    object: Literal["list"]
    data: list[TenantDocument]


class AuditPage(_Document):
    """A page of the record, newest first."""

    object: Literal["list"]
    data: list[AuditEntryDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


def key_document(key: ApiKey) -> dict[str, Any]:
    """As `KeyDocument`."""
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "hint": key.hint,
        "scopes": key.scopes,
        "models": key.models,
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
        "last_used_at": iso(key.last_used_at),
    }


def user_document(user: User) -> dict[str, Any]:
    """As `UserDocument`."""
    return {
        "id": user.id,
        "object": "user",
        "email": user.email,
        "role": user.role,
        "disabled": user.disabled_at is not None,
        "created_at": iso(user.created_at),
        "last_login_at": iso(user.last_login_at),
    }


def tenant_document(tenant: Tenant) -> dict[str, Any]:
    """As `TenantDocument`."""
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "weight": tenant.weight,
        "max_queued_jobs": tenant.max_queued_jobs,
        "requests_per_minute": tenant.requests_per_minute,
        "tokens_per_minute": tenant.tokens_per_minute,
        "max_open_streams": tenant.max_open_streams,
        "retain_jobs_days": tenant.retain_jobs_days,
        "retain_events_days": tenant.retain_events_days,
        "retain_deliveries_days": tenant.retain_deliveries_days,
        "retain_files_days": tenant.retain_files_days,
        "retain_usage_days": tenant.retain_usage_days,
        "created_at": iso(tenant.created_at),
        "suspended_at": iso(tenant.suspended_at),
        "erasing_since": iso(tenant.erasing_since),
    }


def audit_document(entry: AuditEntry) -> dict[str, Any]:
    """As `AuditEntryDocument`."""
    return {
        "id": entry.id,
        "object": "audit_entry",
        "tenant_id": entry.tenant_id,
        "actor": {"kind": entry.actor_kind, "id": entry.actor_id, "name": entry.actor_name},
        "address": entry.address,
        "action": entry.action,
        "target": entry.target,
        "details": entry.details,
        "created_at": iso(entry.created_at),
    }


def list_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """All of them."""
    return {"object": "list", "data": documents}


def page_of(entries: list[AuditEntry], after: str | None) -> dict[str, Any]:
    """As `AuditPage`."""
    return list_of([audit_document(entry) for entry in entries]) | {"has_more": after is not None, "next": after}
