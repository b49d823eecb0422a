"""The log of deliveries, and sending again what has ended. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from penstock.errors import NotFound, WebhookDeliveryWaiting, WebhookEndpointDisabled
from penstock.outbox.services import Topic, post
from penstock.webhooks.endpoints import get_endpoint
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a listing shows; None means all."""

    endpoint_id: str | None = None
    job_id: str | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class ReplaySpan:
    """Deliveries queued in a span of time: the failed ones, or with `delivered` also those that arrived."""

    since: datetime
    until: datetime | None = None
    delivered: bool = False


def list_deliveries(
    session: Session, tenant_id: str, wanted: DeliveryFilter, *, limit: int, before: str | None = None
) -> tuple[list[WebhookDelivery], str | None]:
    """A page of deliveries, newest first, and the cursor of the next page (a delivery's id) if there is one."""
    query = select(WebhookDelivery).where(WebhookDelivery.tenant_id == tenant_id)
    for column, value in (
        (WebhookDelivery.endpoint_id, wanted.endpoint_id),
        (WebhookDelivery.job_id, wanted.job_id),
        (WebhookDelivery.status, wanted.status),
    ):
        if value is not None:
            query = query.where(column == value)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    found = list(session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit + 1)))
    return found[:limit], found[limit - 1].id if len(found) > limit else None


def get_delivery(
    session: Session, tenant_id: str, delivery_id: str
) -> tuple[WebhookDelivery, Sequence[WebhookAttempt]]:
    """The tenant's delivery with its attempts in order. Raises `NotFound`."""
    delivery = _delivery(session, tenant_id, delivery_id)
    attempts = select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id).order_by(WebhookAttempt.number)
    return delivery, session.scalars(attempts).all()


def replay_one(session: Session, tenant_id: str, delivery_id: str) -> WebhookDelivery:
    """Send a delivery that has ended again, on a schedule that begins anew.

    Raises `NotFound`, `WebhookDeliveryWaiting` while it has not ended, and `WebhookEndpointDisabled`.
    """
    seen = _delivery(session, tenant_id, delivery_id)
    if seen.endpoint_id is not None:
        _refuse_disabled(get_endpoint(session, tenant_id, seen.endpoint_id, lock=True))
    delivery = session.get_one(WebhookDelivery, delivery_id, with_for_update=True, populate_existing=True)
    if delivery.status == "waiting":
        raise WebhookDeliveryWaiting(f"{delivery_id} is still being attempted; its next attempt comes by itself")
    for name, value in _anew().items():
        setattr(delivery, name, value)
    session.flush()
    session.refresh(delivery)
    post(session, Topic.WEBHOOK, {"delivery_id": delivery_id})
    return delivery


def replay_span(session: Session, tenant_id: str, endpoint_id: str, span: ReplaySpan) -> int:
    """Send all of an endpoint's deliveries in the span again; returns how many.

    Raises `NotFound` and `WebhookEndpointDisabled`.
    """
    _refuse_disabled(get_endpoint(session, tenant_id, endpoint_id, lock=True))
    ended = ("failed", "delivered") if span.delivered else ("failed",)
    chosen = update(WebhookDelivery).where(
        WebhookDelivery.endpoint_id == endpoint_id,
        WebhookDelivery.status.in_(ended),
        WebhookDelivery.created_at >= span.since,
    )
    if span.until is not None:
        chosen = chosen.where(WebhookDelivery.created_at < span.until)
    # The sweepers ring for them as the control processes get through, so a long span is no flood of messages.
    replayed: Any = session.execute(chosen.values(**_anew()), execution_options={"synchronize_session": False})
    return int(replayed.rowcount)


def _anew() -> dict[str, Any]:
    return {
        "status": "waiting",
        "next_attempt_at": func.clock_timestamp(),
        "delivered_at": None,
        "replayed_after": WebhookDelivery.attempts,
    }


def _delivery(session: Session, tenant_id: str, delivery_id: str) -> WebhookDelivery:
    delivery = session.get(WebhookDelivery, delivery_id)
    if delivery is None or delivery.tenant_id != tenant_id:
        raise NotFound(f"there is no webhook delivery {delivery_id}")
    return delivery


def _refuse_disabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.disabled_at is not None:
        raise WebhookEndpointDisabled(f"{endpoint.id} is disabled ({endpoint.disabled_reason}); enable it first")
