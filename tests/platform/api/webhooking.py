"""What tests of webhook endpoints do over and over: with real deliveries to a real receiver, at once."""

from typing import Any

from penstock.db import Database
from penstock.webhooks.models import WebhookDelivery
from penstock.webhooks.sender import Sender
from penstock.webhooks.tasks import deliver
from sqlalchemy import func, update
from standardwebhooks import Webhook, WebhookVerificationError

from tests.platform.api.conftest import Caller
from tests.platform.webhooks.receiver import Received

SENDER = Sender(timeout_seconds=2.0, allow_loopback=True)
ENDPOINTS = "/v1/webhook-endpoints"
DELIVERIES = "/v1/webhook-deliveries"


def make_endpoint(caller: Caller, url: str, **body: Any) -> Any:
    answer = caller.post(ENDPOINTS, {"url": url} | body)
    assert answer.status_code == 201, answer.text
    return answer.json


def finish_a_job(caller: Caller) -> str:
    """A job that is cancelled while it waits, and so has its final event."""
    job_id = caller.submit()
    assert caller.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    return job_id


def deliveries(caller: Caller, query: str = "") -> list[Any]:
    found: list[Any] = caller.get(f"{DELIVERIES}{query}").json["data"]
    return found


def attempt(database: Database, delivery_id: str) -> str | None:
    """Attempt it now, whenever it is due."""
    with database.transaction() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id == delivery_id, WebhookDelivery.status == "waiting")
            .values(next_attempt_at=func.now())
        )
    return deliver(database, SENDER, delivery_id, lease_seconds=30)


def attempt_all(database: Database, caller: Caller) -> list[str | None]:
    return [attempt(database, found["id"]) for found in reversed(deliveries(caller, "?status=waiting"))]


def is_signed_by(secret: str, request: Received) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True
