"""Deliveries: queued in the transaction that caused them, attempted by the control processes, retried from their rows.

An attempt is taken in one transaction (`take_due` pushes `next_attempt_at` past the longest that a try can last, so
that no second process sends meanwhile, and a process that dies loses nothing), sent outside of any, and recorded in
another. Its number is its fence: an attempt that comes back after a later one was taken is noted, and moves nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.clock import iso, utc_now
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.outbox.services import Topic, post
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery
from penstock.webhooks.retries import MOST_ATTEMPTS, Answer, retry_delay


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """An attempt that is ours to make now. `number` counts from 1 and is the attempt's fence."""

    id: str
    number: int
    url: str
    payload: dict[str, Any]
    secret: str
    traceparent: str | None


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
    """Note that `event_type` of a job is owed to `url`; returns the delivery's id, its `webhook-id` for good."""
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
    """Deliveries whose next attempt is due, the longest overdue first."""
    return list(
        session.scalars(
            select(WebhookDelivery.id)
            .where(WebhookDelivery.status == "waiting", WebhookDelivery.next_attempt_at <= func.clock_timestamp())
            .order_by(WebhookDelivery.next_attempt_at)
            .limit(limit)
        )
    )


def take_due(session: Session, delivery_id: str, *, lease_seconds: float) -> DueDelivery | None:
    """Take the delivery's next attempt, which nobody else gets for `lease_seconds`. None unless it waits and is due.

    A delivery whose attempts are used up without an end (the process died in its last) fails here.
    """
    delivery = session.scalars(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.status == "waiting",
            WebhookDelivery.next_attempt_at <= func.clock_timestamp(),
        )
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if delivery is None:
        return None
    if delivery.attempts >= MOST_ATTEMPTS:
        delivery.status, delivery.next_attempt_at = "failed", None
        return None
    delivery.attempts += 1
    delivery.next_attempt_at = _from_now(timedelta(seconds=lease_seconds))
    session.flush()
    return _as_due(session, delivery)


def record_attempt(session: Session, due: DueDelivery, answer: Answer) -> str | None:
    """Note what came of an attempt and what follows from it; returns the delivery's status.

    None when a later attempt was taken meanwhile: then this one is noted and changes nothing.
    """
    session.execute(
        insert(WebhookAttempt).values(
            delivery_id=due.id,
            number=due.number,
            started_at=_from_now(timedelta(milliseconds=-answer.milliseconds)),
            milliseconds=answer.milliseconds,
            status_code=answer.status,
            response_body=answer.body,
            error=answer.error,
        )
    )
    return session.scalar(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == due.id,
            WebhookDelivery.status == "waiting",
            WebhookDelivery.attempts == due.number,
        )
        .values(**_consequence(due.number, answer))
        .returning(WebhookDelivery.status)
    )


def _as_due(session: Session, delivery: WebhookDelivery) -> DueDelivery:
    secret, traceparent = session.execute(
        select(Tenant.webhook_secret, Job.traceparent)
        .select_from(Job)
        .join(Tenant, Tenant.id == Job.tenant_id)
        .where(Job.id == delivery.job_id)
    ).one()
    return DueDelivery(delivery.id, delivery.attempts, delivery.url, delivery.payload, secret, traceparent)


def _consequence(number: int, answer: Answer) -> dict[str, Any]:
    if answer.delivered:
        return {"status": "delivered", "next_attempt_at": None, "delivered_at": func.clock_timestamp()}
    delay = None if answer.hopeless else retry_delay(number, answer.retry_after)
    if delay is None:
        return {"status": "failed", "next_attempt_at": None}
    return {"next_attempt_at": _from_now(delay)}


def _from_now(delay: timedelta) -> Any:
    return func.clock_timestamp() + delay
