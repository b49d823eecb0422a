"""The record of every change to who may do what: who made it, what it was, when, and from where.

An entry is written in the transaction of its change, and never altered: the database refuses that.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.auth.models import AuditEntry
from penstock.auth.services import Scope, includes
from penstock.ids import new_id


class ActorKind(StrEnum):
    """Through what somebody acts."""

    API_KEY = "api_key"
    USER = "user"
    COMMAND = "command"
    SYSTEM = "system"


class Action(StrEnum):
    """What was done."""

    TENANT_CREATED = "tenant.created"
    TENANT_CHANGED = "tenant.changed"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    TENANT_ERASED = "tenant.erased"
    USER_CREATED = "user.created"
    USER_CHANGED = "user.changed"
    USER_REMOVED = "user.removed"
    USER_SIGNED_IN = "user.signed_in"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    BUDGET_SET = "budget.set"
    WEBHOOK_CREATED = "webhook_endpoint.created"
    WEBHOOK_CHANGED = "webhook_endpoint.changed"
    WEBHOOK_DELETED = "webhook_endpoint.deleted"
    WEBHOOK_SECRET_ROTATED = "webhook_endpoint.secret_rotated"  # noqa: S105 - an action's name
    WEBHOOK_DISABLED = "webhook_endpoint.disabled"
    WEBHOOK_ENABLED = "webhook_endpoint.enabled"
    BULK_CREATED = "bulk.created"
    BULK_CANCELLED = "bulk.cancelled"
    DEAD_LETTER_REPLAYED = "dead_letter.replayed"
    DEAD_LETTER_DISCARDED = "dead_letter.discarded"
    WORKER_DRAINED = "worker.drain_requested"
    ROLLOUT_STARTED = "rollout.started"
    ROLLOUT_PAUSED = "rollout.paused"
    ROLLOUT_RESUMED = "rollout.resumed"
    ROLLOUT_ABORTED = "rollout.aborted"
    ROLLOUT_ROLLED_BACK = "rollout.rolled_back"
    ROLLOUT_PROMOTED = "rollout.promoted"
    ROLLOUT_POLICY_SET = "rollout_policy.set"
    ROLLOUT_TEXT_READ = "rollout.text_read"
    DEPLOYMENT_PLACED = "deployment.placed"
    REPLAY_CREATED = "replay.created"
    REPLAY_CANCELLED = "replay.cancelled"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change and from where, and what they may hand out: `models` are those they may use, None is all.

    `tenant_id` is whom they act in; a command and the system act in none.
    """

    kind: ActorKind
    id: str
    name: str
    address: str | None
    scopes: Collection[Scope]
    models: Collection[str] | None = None
    tenant_id: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether their scopes include that one."""
        return includes(self.scopes, scope)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries a listing shows; None means all."""

    tenant_id: str | None = None
    action: Action | None = None
    actor: str | None = None
    target: str | None = None


def record(
    session: Session, actor: Actor, action: Action, *, tenant_id: str, target: str, details: dict[str, Any]
) -> None:
    """Write down that the actor did this to `target`, which is the tenant's. `details` hold no secret."""
    session.add(
        AuditEntry(
            id=new_id("aud"),
            tenant_id=tenant_id,
            actor_kind=actor.kind.value,
            actor_id=actor.id,
            actor_name=actor.name,
            address=actor.address,
            action=action.value,
            target=target,
            details=details,
        )
    )


def list_entries(
    session: Session, wanted: AuditFilter, *, limit: int, before: str | None = None
) -> tuple[list[AuditEntry], str | None]:
    """A page of entries, newest first, and the cursor of the next page (an entry's id) if there is one."""
    query = select(AuditEntry)
    for column, value in (
        (AuditEntry.tenant_id, wanted.tenant_id),
        (AuditEntry.action, wanted.action),
        (AuditEntry.actor_id, wanted.actor),
        (AuditEntry.target, wanted.target),
    ):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    entries = list(session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit + 1)))
    return entries[:limit], entries[limit - 1].id if len(entries) > limit else None
