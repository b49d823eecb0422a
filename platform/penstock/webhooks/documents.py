"""How webhook endpoints and deliveries look from outside, and the documents of their rows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.clock import iso
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WebhookEndpointDocument(_Document):
    """An address that gets events of all the tenant's jobs, without its secret."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    description: str
    events: list[str] = Field(description="The events that it gets")
    previous_secret_until: datetime | None = Field(description="Until then, attempts carry two signatures")
    failures: int = Field(description="Attempts that failed since the last one that did not")
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime


class WebhookEndpointWithSecret(WebhookEndpointDocument):
    """An endpoint whose secret was just made."""

    secret: str = Field(description="What signs its webhooks: `whsec_` and base64, shown this once")


class WebhookEndpointList(_Document):
    """All endpoints, newest first."""

    object: Literal["list"]
    data: list[WebhookEndpointDocument]


class WebhookDeliveryDocument(_Document):
    """One event on its way to one address."""

    id: str = Field(description="Its `webhook-id`, the same in every attempt and replay")
    object: Literal["webhook_delivery"]
    endpoint_id: str | None = Field(description="Null for a job's own address")
    job_id: str | None
    event_number: int | None
    type: str
    url: str
    status: Literal["waiting", "delivered", "failed"]
    attempts: int = Field(description="Attempts that were begun")
    next_attempt_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None


class WebhookAttemptDocument(_Document):
    """One HTTP try: a status, or an error."""

    number: int
    started_at: datetime
    milliseconds: int
    status_code: int | None
    response_body: str | None = Field(description="Its first 2 KB")
    error: str | None


class WebhookDeliveryDetail(WebhookDeliveryDocument):
    """A delivery with what is sent and every try."""

    payload: dict[str, Any]
    attempt_history: list[WebhookAttemptDocument]


class WebhookDeliveryPage(_Document):
    """A page of deliveries, newest first."""

    object: Literal["list"]
    data: list[WebhookDeliveryDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


class ReplayDocument(_Document):
    """What a replay has set going."""

    object: Literal["webhook_replay"]
    replayed: int = Field(description="Deliveries that will be attempted again")


def endpoint_document(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """As `WebhookEndpointDocument`."""
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "description": endpoint.description,
        "events": endpoint.events,
        "previous_secret_until": iso(endpoint.previous_secret_until),
        "failures": endpoint.failures,
        "failing_since": iso(endpoint.failing_since),
        "disabled_at": iso(endpoint.disabled_at),
        "disabled_reason": endpoint.disabled_reason,
        "created_at": iso(endpoint.created_at),
    }


def delivery_document(delivery: WebhookDelivery) -> dict[str, Any]:
    """As `WebhookDeliveryDocument`."""
    return {
        "id": delivery.id,
        "object": "webhook_delivery",
        "endpoint_id": delivery.endpoint_id,
        "job_id": delivery.job_id,
        "event_number": delivery.event_number,
        "type": delivery.payload["type"],
        "url": delivery.url,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_attempt_at": iso(delivery.next_attempt_at),
        "created_at": iso(delivery.created_at),
        "delivered_at": iso(delivery.delivered_at),
    }


def delivery_detail(delivery: WebhookDelivery, attempts: Sequence[WebhookAttempt]) -> dict[str, Any]:
    """As `WebhookDeliveryDetail`."""
    history = [_attempt_document(attempt) for attempt in attempts]
    return delivery_document(delivery) | {"payload": delivery.payload, "attempt_history": history}


def _attempt_document(attempt: WebhookAttempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started_at": iso(attempt.started_at),
        "milliseconds": attempt.milliseconds,
        "status_code": attempt.status_code,
        "response_body": attempt.response_body,
        "error": attempt.error,
    }
