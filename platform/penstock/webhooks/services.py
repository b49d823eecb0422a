"""Deliveries: attempted by the control processes, retried from their rows.

An attempt is taken in one transaction (`take_due` pushes `next_attempt_at` past the longest that a try can last, so
that no second process sends meanwhile, and a process that dies loses nothing), sent outside of any, and recorded in
another. Its number is its fence: an attempt that comes back after a later one was taken is noted, and moves nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.jobs.models import Job
from penstock.webhooks.endpoints import EndpointEvent, note_answer
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from penstock.webhooks.retries import MOST_ATTEMPTS, Answer, retry_delay

DISABLE_AFTER: Final = timedelta(days=5)


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """An attempt that is ours to make now.

    `number` counts from 1 and is the attempt's fence; `turn` is its place in the schedule, which a replay begins anew.
    Each of `secrets` signs it.
    """

    id: str
    number: int
    url: str
    payload: dict[str, Any]
    secrets: tuple[str, ...]
    traceparent: str | None = None
    endpoint_id: str | None = None
    turn: int = 1

    @property
    def is_test(self) -> bool:
        return bool(self.payload["type"] == EndpointEvent.TEST)


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

    A delivery whose attempts are used up without an end (the process died in its last) fails here, and so does one that
    was queued while its endpoint was being disabled.
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
    endpoint = session.get(WebhookEndpoint, delivery.endpoint_id) if delivery.endpoint_id else None
    is_test = delivery.payload["type"] == EndpointEvent.TEST
    if _used_up(delivery, is_test) or (endpoint is not None and endpoint.disabled_at is not None and not is_test):
        delivery.status, delivery.next_attempt_at = "failed", None
        return None
    delivery.attempts += 1
    delivery.next_attempt_at = _from_now(timedelta(seconds=lease_seconds))
    if endpoint is not None:
        delivery.url = endpoint.url  # it may have moved since the event was queued
    session.flush()
    return _as_due(session, delivery, endpoint)


def record_attempt(
    session: Session, due: DueDelivery, answer: Answer, *, disable_after: timedelta = DISABLE_AFTER
) -> str | None:
    """Note what came of an attempt and what follows from it; returns the delivery's status.

    None when a later attempt was taken meanwhile: then this one is noted and changes nothing. None also when the
    delivery was deleted. An endpoint that has failed for `disable_after` is disabled.
    """
    if due.endpoint_id is not None and not due.is_test:
        note_answer(session, due.endpoint_id, answer, disable_after=disable_after)
    delivery = session.get(WebhookDelivery, due.id, with_for_update=True)
    if delivery is None:
        return None
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
    if delivery.attempts != due.number or delivery.status == "delivered":
        return None
    if answer.delivered or delivery.status == "waiting":  # what has failed (its endpoint was disabled) may yet arrive
        for name, value in _consequence(due, answer).items():
            setattr(delivery, name, value)
    session.flush()
    return delivery.status


def _used_up(delivery: WebhookDelivery, is_test: bool) -> bool:
    return delivery.attempts - delivery.replayed_after >= (1 if is_test else MOST_ATTEMPTS)


def _as_due(session: Session, delivery: WebhookDelivery, endpoint: WebhookEndpoint | None) -> DueDelivery:
    tenants = select(Tenant.webhook_secret).where(Tenant.id == delivery.tenant_id)
    return DueDelivery(
        delivery.id,
        delivery.attempts,
        delivery.url,
        delivery.payload,
        _secrets(session, endpoint) if endpoint is not None else (session.scalars(tenants).one(),),
        session.scalar(select(Job.traceparent).where(Job.id == delivery.job_id)),
        delivery.endpoint_id,
        delivery.attempts - delivery.replayed_after,
    )


def _secrets(session: Session, endpoint: WebhookEndpoint) -> tuple[str, ...]:
    before, until = endpoint.previous_secret, endpoint.previous_secret_until
    if before is None or until is None or until <= session.scalars(select(func.clock_timestamp())).one():
        return (endpoint.secret,)
    return endpoint.secret, before


def _consequence(due: DueDelivery, answer: Answer) -> dict[str, Any]:
    if answer.delivered:
        return {"status": "delivered", "next_attempt_at": None, "delivered_at": func.clock_timestamp()}
    delay = None if answer.hopeless or due.is_test else retry_delay(due.turn, answer.retry_after)
    if delay is None:
        return {"status": "failed", "next_attempt_at": None}
    return {"next_attempt_at": _from_now(delay)}


def _from_now(delay: timedelta) -> Any:
    return func.clock_timestamp() + delay
