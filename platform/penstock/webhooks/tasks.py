"""The Celery task that attempts one delivery. It names a row, no more: a lost or doubled message changes nothing."""

import json
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

from celery import Celery
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

import penstock
from penstock.broker import DELIVER_WEBHOOK_TASK
from penstock.db import Database
from penstock.logs import get_logger
from penstock.metrics import ControlMetrics
from penstock.settings import Settings
from penstock.tracing import Tracing, parent_of, traced_logs, traceparent_of
from penstock.webhooks.retries import Answer
from penstock.webhooks.sender import Sender
from penstock.webhooks.services import DISABLE_AFTER, DueDelivery, record_attempt, take_due
from penstock.webhooks.signing import sign

_NAME_LOOKUP_SECONDS = 60.0
"""The system's resolver knows no deadline; its own time-outs stay well below this."""

log = get_logger(__name__)


def register(
    app: Celery,
    database: Database,
    settings: Settings,
    metrics: ControlMetrics | None = None,
    tracing: Tracing | None = None,
) -> None:
    """Give `app` the task that delivers webhooks."""
    counted, traced = metrics or ControlMetrics(), tracing or Tracing("control")
    sender = Sender(timeout_seconds=settings.webhook_timeout_seconds, allow_loopback=settings.webhook_allow_loopback)
    lease_seconds = settings.webhook_timeout_seconds + _NAME_LOOKUP_SECONDS
    disable_after = timedelta(days=settings.webhook_disable_days)

    def task(delivery_id: str) -> None:
        deliver(
            database,
            sender,
            delivery_id,
            lease_seconds=lease_seconds,
            disable_after=disable_after,
            metrics=counted,
            tracing=traced,
        )

    app.task(task, name=DELIVER_WEBHOOK_TASK)


def deliver(
    database: Database,
    sender: Sender,
    delivery_id: str,
    *,
    lease_seconds: float,
    disable_after: timedelta = DISABLE_AFTER,
    metrics: ControlMetrics | None = None,
    tracing: Tracing | None = None,
) -> str | None:
    """Attempt the delivery if it is due and nobody is at it; returns its status then, or None if it was not ours."""
    with database.transaction() as session:
        due = take_due(session, delivery_id, lease_seconds=lease_seconds)
    if due is None:
        return None
    body = encode(due.payload)
    span = _span(tracing or Tracing("control"), due)
    due = replace(due, traceparent=traceparent_of(span) or due.traceparent)
    with traced_logs(due.traceparent):
        answer = sender.post(due.url, headers_of(due, body, int(time.time())), body)
    _end(span, answer)
    with database.transaction() as session:
        status = record_attempt(session, due, answer, disable_after=disable_after)
    if metrics is not None:
        metrics.webhook_attempts.labels("delivered" if answer.delivered else "failed").inc()
        metrics.webhook_seconds.observe(answer.milliseconds / 1000)
    _log(due, answer, status)
    return status


def encode(payload: dict[str, Any]) -> bytes:
    """The bytes that are sent and signed."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def headers_of(due: DueDelivery, body: bytes, timestamp: int) -> dict[str, str]:
    """The attempt's headers: `webhook-id` is the same in every attempt, the timestamp and so the signature are not."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"Penstock/{penstock.__version__}",
        "webhook-id": due.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, due.id, timestamp, body) for secret in due.secrets),
    }
    return headers | {"traceparent": due.traceparent} if due.traceparent else headers


def _span(tracing: Tracing, due: DueDelivery) -> Span:
    """A span for the attempt, the child of that which submitted the job."""
    return tracing.tracer.start_span(
        "webhook.attempt",
        parent_of(due.traceparent),
        kind=SpanKind.CLIENT,
        attributes={"http.request.method": "POST", "penstock.delivery.id": due.id, "penstock.attempt": due.number},
    )


def _end(span: Span, answer: Answer) -> None:
    if answer.status is not None:
        span.set_attribute("http.response.status_code", answer.status)
    if not answer.delivered:
        span.set_status(Status(StatusCode.ERROR, answer.error))
    span.end()


def _log(due: DueDelivery, answer: Answer, status: str | None) -> None:
    event = {"delivered": "webhook.delivered", "failed": "webhook.given_up"}.get(status or "", "webhook.attempt_failed")
    level = log.info if status == "delivered" else log.warning
    level(
        event,
        delivery=due.id,
        attempt=due.number,
        status_code=answer.status,
        error=answer.error,
        milliseconds=answer.milliseconds,
    )
