"""Receiving webhooks: whether one is from the server that it names, whole and fresh."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final

from pydantic import Discriminator, Tag, ValidationError

from penstock.client.batches import Batch
from penstock.client.bulk import BulkOperation
from penstock.client.documents import Document
from penstock.client.endpoints import WebhookEndpoint
from penstock.client.errors import WebhookInvalid
from penstock.client.job_documents import Feedback, Job
from penstock.client.rollouts import Decision, Rollout
from penstock.webhooks.signing import is_signed

TOLERANCE_SECONDS: Final = 300


def _kind(data: object) -> str:
    return str(data.get("object")) if isinstance(data, dict) else "job"


class WebhookEvent(Document):
    """What a webhook tells: an event, and the job as it was then. `event_number` is the event's in its job.

    `webhook_endpoint.test` and `webhook_endpoint.disabled` have the endpoint as `data`, and no number; events of a
    batch have the batch, of a rollout the rollout with the `decision`, of a champion that was moved by hand the
    decision, and `job.feedback` has the feedback.
    """

    type: str
    timestamp: datetime
    event_number: int | None = None
    data: Annotated[
        Annotated[Job, Tag("job")]
        | Annotated[WebhookEndpoint, Tag("webhook_endpoint")]
        | Annotated[Batch, Tag("batch")]
        | Annotated[BulkOperation, Tag("bulk_operation")]
        | Annotated[Rollout, Tag("rollout")]
        | Annotated[Decision, Tag("decision")]
        | Annotated[Feedback, Tag("feedback")],
        Discriminator(_kind),
    ]


def verify_webhook(
    headers: Mapping[str, str], body: bytes | str, secret: str, *, tolerance: float = TOLERANCE_SECONDS
) -> WebhookEvent:
    """The event in a webhook's request, once its signature and age were checked (Standard Webhooks 1.0).

    `body` is the request's body as it came in, `secret` the endpoint's `whsec_...`, or the tenant's for a job's own
    address. Deliveries can repeat: the header `webhook-id` is the same each time. Raises `WebhookInvalid`, saying what
    is wrong.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not given.get(name)]
    if missing:
        raise WebhookInvalid(f"the request lacks the header {missing[0]}", field=missing[0])
    raw = body.encode() if isinstance(body, str) else body
    timestamp = _fresh(given["webhook-timestamp"], tolerance)
    if not is_signed(given["webhook-signature"], secret, given["webhook-id"], timestamp, raw):
        raise WebhookInvalid("the signature does not fit body and secret", field="webhook-signature")
    try:
        return WebhookEvent.model_validate_json(raw)
    except ValidationError as error:
        raise WebhookInvalid(f"the body is signed but is no event: {error.errors()[0]['msg']}", field="body") from error


def _fresh(header: str, tolerance: float) -> int:
    if not (header.isascii() and header.isdigit() and len(header) < 16):
        raise WebhookInvalid("the timestamp is no number of seconds", field="webhook-timestamp")
    if abs(time.time() - int(header)) > tolerance:
        raise WebhookInvalid(
            f"the timestamp is more than {tolerance:g} seconds from now: an old webhook, or a wrong clock",
            field="webhook-timestamp",
        )
    return int(header)
