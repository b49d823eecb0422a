"""How what the installation stands on does: the outbox, webhooks, the points of metrics. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.ids import first_id
from penstock.outbox.models import OutboxMessage
from penstock.rollups.models import MetricProgress
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint

_SHOWN: Final = 20
_RECENT: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Topic:
    """Messages of the outbox on one topic."""

    topic: str
    waiting: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Webhooks: those that wait, of them those whose turn has come, and what became of those of the last day."""

    waiting: int
    due: int
    oldest_due_at: datetime | None
    delivered: int
    failed: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """An endpoint that fails or was disabled, and whose it is."""

    endpoint: WebhookEndpoint
    tenant: str


@dataclass(frozen=True, slots=True)
class Wellness:
    """All of it. `metrics_through`: until when the points of metrics are final; None before the first look."""

    topics: Sequence[Topic]
    deliveries: Deliveries
    troubles: Sequence[Trouble]
    metrics_through: datetime | None


def wellness(session: Session) -> Wellness:
    """As it is now."""
    topics = session.execute(
        select(OutboxMessage.topic, func.count(), func.min(OutboxMessage.created_at))
        .group_by(OutboxMessage.topic)
        .order_by(OutboxMessage.topic)
    )
    through = session.scalar(select(MetricProgress.through).where(MetricProgress.name == "samples"))
    return Wellness([Topic(*row) for row in topics], _deliveries(session), _troubles(session), through)


def _deliveries(session: Session) -> Deliveries:
    now = func.clock_timestamp()
    waiting = WebhookDelivery.status == "waiting"
    due = (waiting, WebhookDelivery.next_attempt_at <= now)
    # Their identifiers, which are indexed, sort by time.
    lately = first_id("msg", session.scalars(select(now)).one() - _RECENT)
    counted = select(WebhookDelivery.status, func.count()).where(WebhookDelivery.id >= lately, ~waiting)
    ended: dict[str, int] = {row[0]: row[1] for row in session.execute(counted.group_by(WebhookDelivery.status))}
    return Deliveries(
        session.scalar(select(func.count()).where(waiting)) or 0,
        session.scalar(select(func.count()).where(*due)) or 0,
        session.scalar(select(func.min(WebhookDelivery.next_attempt_at)).where(*due)),
        ended.get("delivered", 0),
        ended.get("failed", 0),
    )


def _troubles(session: Session) -> list[Trouble]:
    rows = session.execute(
        select(WebhookEndpoint, Tenant.name)
        .join(Tenant, Tenant.id == WebhookEndpoint.tenant_id)
        .where((WebhookEndpoint.failures > 0) | WebhookEndpoint.disabled_at.is_not(None))
        .order_by(WebhookEndpoint.disabled_at.desc().nulls_last(), WebhookEndpoint.failing_since, WebhookEndpoint.id)
        .limit(_SHOWN)
    )
    return [Trouble(endpoint, tenant) for endpoint, tenant in rows]
