"""Tables of people and keys: `tenant`, `user`, `api_key`, and `audit_entry`, the record of every change to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from penstock.db import Base


class Tenant(Base):
    """An organisation. Whatever belongs to one is invisible to every other."""

    __tablename__ = "tenant"
    __table_args__ = (
        CheckConstraint("weight > 0 AND weight < 'Infinity'", name="weight"),
        CheckConstraint("erasing_since IS NULL OR suspended_at IS NOT NULL", name="erased_when_suspended"),
        CheckConstraint(
            "least(retain_jobs_days, retain_events_days, retain_deliveries_days, retain_files_days, "
            "retain_usage_days) > 0",
            name="retention",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    webhook_secret: Mapped[str]
    max_queued_jobs: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    max_open_streams: Mapped[int | None]
    weight: Mapped[float] = mapped_column(server_default="1")
    """How large its share of a busy worker is beside those of other tenants."""
    retain_jobs_days: Mapped[int | None]
    retain_events_days: Mapped[int | None]
    retain_deliveries_days: Mapped[int | None]
    retain_files_days: Mapped[int | None]
    retain_usage_days: Mapped[int | None]
    """How long it keeps what has ended (`penstock.retention`); null is as long as the installation does."""
    suspended_at: Mapped[datetime | None]
    """Since then its keys and people are refused, and its waiting jobs are not claimed."""
    erasing_since: Mapped[datetime | None]
    """Since then all that it has is being deleted, and at last this row."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class User(Base):
    """A person who signs in to the portal."""

    __tablename__ = "user"
    __table_args__ = (
        CheckConstraint("role IN ('member', 'admin', 'operator')", name="role"),
        UniqueConstraint("oidc_issuer", "oidc_subject", name="uq_user_oidc_issuer_oidc_subject"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]
    """Null for who signs in through the identity provider alone."""
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_login_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    oidc_issuer: Mapped[str | None]
    oidc_subject: Mapped[str | None]
    """Whom the identity provider knows them as, once they have signed in through it."""


class ApiKey(Base):
    """A program's key: 256 random bits, of which only the SHA-256 is kept."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_tenant_id", "tenant_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str]
    digest: Mapped[bytes] = mapped_column(unique=True)
    hint: Mapped[str]
    scopes: Mapped[list[str]]
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """Names of the models that it may use; all without a list."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class AuditEntry(Base):
    """One change: who made it, what it was, when, and from where. The database refuses to alter one."""

    __tablename__ = "audit_entry"
    __table_args__ = (
        CheckConstraint("actor_kind IN ('api_key', 'user', 'command', 'system')", name="actor_kind"),
        Index("ix_audit_entry_tenant", "tenant_id", text("id DESC")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    """Refers to no row: that a tenant was erased is told when it is gone."""
    actor_kind: Mapped[str]
    actor_id: Mapped[str]
    actor_name: Mapped[str]
    address: Mapped[str | None]
    action: Mapped[str]
    target: Mapped[str]
    details: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
