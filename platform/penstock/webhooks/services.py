"""Deliveries: queued in the transaction that caused them, attempted by the control processes, retried from their rows."""

from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.clock import iso, utc_now
from penstock.ids import new_id
from penstock.outbox.services import Topic, post
from penstock.webhooks.models import WebhookDelivery


def queue_delivery(
    session: Session,
    *,
    tenant_id: str,
    job_id: str,
    event_number: int,
    url: str,
    event_type: str,
    document: dict[str, Any],
) -> str:
    """Note that `event_type` of a job is owed to `url`; returns the delivery's id, which is its `webhook-id` for good."""
    delivery_id = new_id("msg")
    session.execute(
        insert(WebhookDelivery),
        {
            "id": delivery_id,
            "tenant_id": tenant_id,
            "job_id": job_id,
            "event_number": event_number,
            "url": url,
            "payload": {
                "type": event_type,
                "timestamp": iso(utc_now()),
                "event_number": event_number,
                "data": document,
            },
        },
    )
    post(session, Topic.WEBHOOK, {"delivery_id": delivery_id})
    return delivery_id


def due_deliveries(session: Session, limit: int) -> list[str]:
    """Ids of deliveries whose next attempt is due, the longest due first."""
    return list(
        session.scalars(
            select(WebhookDelivery.id)
            .where(WebhookDelivery.status == "waiting", WebhookDelivery.next_attempt_at <= func.now())
            .order_by(WebhookDelivery.next_attempt_at)
            .limit(limit)
        )
    )
