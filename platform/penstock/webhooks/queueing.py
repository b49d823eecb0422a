"""Deliveries are queued in the transaction that caused them: to a job's own address, and to the tenant's endpoints."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ScalarSelect, any_, func, insert, literal_column, select
from sqlalchemy.orm import Session

from penstock.clock import iso, utc_now
from penstock.ids import new_id
from penstock.outbox.services import Topic, post
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint


@dataclass(frozen=True, slots=True)
class Owed:
    """An event that somebody is to be told of: one of a job with its number there, or one of the tenant."""

    tenant_id: str
    event_type: str
    document: dict[str, Any]
    job_id: str | None = None
    event_number: int | None = None

    @property
    def payload(self) -> dict[str, Any]:
        number = {"event_number": self.event_number} if self.event_number is not None else {}
        return {"type": self.event_type, "timestamp": iso(utc_now()), **number, "data": self.document}


def listening(tenant_id: str, event_type: str) -> ScalarSelect[list[str] | None]:
    """The endpoints that want an event, as SQL over the names of two columns, to be asked for as events are written."""
    return (
        select(func.array_agg(WebhookEndpoint.id))
        .where(
            WebhookEndpoint.tenant_id == literal_column(tenant_id),
            WebhookEndpoint.disabled_at.is_(None),
            literal_column(event_type) == any_(WebhookEndpoint.events),
        )
        .scalar_subquery()
    )


def queue_delivery(session: Session, owed: Owed, url: str, *, endpoint_id: str | None = None) -> str:
    """Note that an event is owed to `url`; returns the delivery's id, its `webhook-id` for good."""
    delivery_id = new_id("msg")
    session.execute(
        insert(WebhookDelivery),
        {
            "id": delivery_id,
            "tenant_id": owed.tenant_id,
            "endpoint_id": endpoint_id,
            "job_id": owed.job_id,
            "event_number": owed.event_number,
            "url": url,
            "payload": owed.payload,
        },
    )
    post(session, Topic.WEBHOOK, {"delivery_id": delivery_id})
    return delivery_id


def queue_for_endpoints(session: Session, owed: Owed, endpoint_ids: Collection[str]) -> None:
    """Note that an event is owed to each of these endpoints that is still there and enabled."""
    # Held against deletion, which would otherwise fail the transaction of the job that it has nothing to do with.
    found = session.scalars(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.id.in_(endpoint_ids), WebhookEndpoint.disabled_at.is_(None))
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
        .execution_options(populate_existing=True)
    ).all()
    for endpoint in found:
        queue_delivery(session, owed, endpoint.url, endpoint_id=endpoint.id)


def tell_endpoints(session: Session, owed: Owed) -> None:
    """Note that an event of the tenant is owed to every endpoint that wants it."""
    wanted = select(WebhookEndpoint.id).where(
        WebhookEndpoint.tenant_id == owed.tenant_id,
        WebhookEndpoint.disabled_at.is_(None),
        WebhookEndpoint.events.any_() == owed.event_type,
    )
    queue_for_endpoints(session, owed, session.scalars(wanted).all())
