"""Signatures, the log of deliveries, and sending again. Time passes by changing rows."""

import json
from datetime import timedelta

import pytest
from penstock.clock import iso, utc_now
from penstock.db import Database
from penstock.webhooks.documents import (
    WebhookDeliveryDetail,
    WebhookEndpointDocument,
)
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint
from penstock.webhooks.retries import MOST_ATTEMPTS
from sqlalchemy import func, update

from tests.platform.api.conftest import Caller
from tests.platform.api.webhooking import (
    DELIVERIES,
    ENDPOINTS,
    attempt,
    attempt_all,
    deliveries,
    finish_a_job,
    is_signed_by,
    make_endpoint,
)
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Receiver, Reply

__all__ = ["receiver"]

pytestmark = pytest.mark.usefixtures("deployment")


def test_a_rotated_secret_signs_beside_the_old_one_for_the_grace_alone(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    made = make_endpoint(caller, receiver.url)
    path = f"{ENDPOINTS}/{made['id']}"
    rotated = caller.post(f"{path}/rotate-secret", {"grace_seconds": 3600}).json
    assert rotated["previous_secret_until"] is not None
    finish_a_job(caller)
    attempt_all(database, caller)
    assert is_signed_by(made["secret"], receiver.requests[0])
    assert is_signed_by(rotated["secret"], receiver.requests[0])

    with database.transaction() as session:
        session.execute(update(WebhookEndpoint).values(previous_secret_until=func.now()))
    finish_a_job(caller)
    attempt_all(database, caller)
    assert not is_signed_by(made["secret"], receiver.requests[1])
    assert is_signed_by(rotated["secret"], receiver.requests[1])

    at_once = caller.post(f"{path}/rotate-secret", {"grace_seconds": 0}).json
    assert at_once["previous_secret_until"] is None
    finish_a_job(caller)
    attempt_all(database, caller)
    assert [is_signed_by(s["secret"], receiver.requests[2]) for s in (rotated, at_once)] == [False, True]


def test_a_test_event_is_attempted_once_also_while_disabled(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    made = make_endpoint(caller, receiver.url)
    path = f"{ENDPOINTS}/{made['id']}"
    caller.call("PATCH", path, {"disabled": True})
    receiver.replies.append(Reply(500))
    outcomes = []
    for _ in range(2):
        sent = caller.post(f"{path}/test")
        assert sent.status_code == 202
        outcomes.append(attempt(database, sent.json["id"]))
    assert outcomes == ["failed", "delivered"]
    payload = json.loads(receiver.requests[1].body)
    assert payload["type"] == "webhook_endpoint.test"
    assert WebhookEndpointDocument.model_validate(payload["data"]).id == made["id"]
    assert caller.get(path).json["failures"] == 0


def test_the_log_tells_status_latency_and_answer(caller: Caller, database: Database, receiver: Receiver) -> None:
    make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    receiver.replies.append(Reply(503, body=b"busy " * 1000))
    assert attempt_all(database, caller) == ["waiting"]
    (found,) = deliveries(caller, "?status=waiting")
    detail = WebhookDeliveryDetail.model_validate(caller.get(f"{DELIVERIES}/{found['id']}").json)
    (tried,) = detail.attempt_history
    assert (tried.status_code, tried.response_body) == (503, ("busy " * 1000)[:2048])
    assert tried.milliseconds >= 0
    assert detail.next_attempt_at is not None
    assert deliveries(caller, "?status=failed") == []


def test_the_log_is_read_page_by_page(caller: Caller, receiver: Receiver) -> None:
    make_endpoint(caller, receiver.url)
    for _ in range(5):
        finish_a_job(caller)
    whole = [found["id"] for found in deliveries(caller)]
    paged, query = [], "?limit=2"
    while query:
        page = caller.get(f"{DELIVERIES}{query}").json
        paged += [found["id"] for found in page["data"]]
        query = f"?limit=2&after={page['next']}" if page["has_more"] else ""
    assert paged == whole == sorted(whole, reverse=True)


def test_one_that_ended_is_replayed_by_its_id_on_a_fresh_schedule(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    (found,) = deliveries(caller)
    path = f"{DELIVERIES}/{found['id']}"
    waiting = caller.post(f"{path}/replay")
    assert (waiting.status_code, waiting.json["code"]) == (409, "webhook_delivery_waiting")
    receiver.replies.extend(Reply(500) for _ in range(MOST_ATTEMPTS))
    assert [attempt(database, found["id"]) for _ in range(MOST_ATTEMPTS)][-1] == "failed"
    replayed = caller.post(f"{path}/replay")
    assert (replayed.status_code, replayed.json["status"], replayed.json["attempts"]) == (202, "waiting", 10)
    receiver.replies.append(Reply(500))
    assert [attempt(database, found["id"]), attempt(database, found["id"])] == ["waiting", "delivered"]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {found["id"]}
    history = caller.get(path).json["attempt_history"]
    assert [tried["number"] for tried in history] == list(range(1, 13))
    assert caller.post(f"{path}/replay").status_code == 202  # also what arrived


def test_all_that_failed_since_a_time_is_replayed(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, receiver.url)
    other = make_endpoint(caller, receiver.url, events=["job.queued"])
    for _ in range(4):
        finish_a_job(caller)
    mine = [found["id"] for found in reversed(deliveries(caller, f"?endpoint={made['id']}"))]
    statuses = ("failed", "failed", "delivered", "waiting")
    with database.transaction() as session:
        for delivery_id, status in zip(mine, statuses, strict=True):
            values = {"status": status} | ({} if status == "waiting" else {"next_attempt_at": None})
            session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**values))
        old = utc_now() - timedelta(days=2)
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id == mine[0]).values(created_at=old))
    path = f"{ENDPOINTS}/{made['id']}/replay"
    since = iso(utc_now() - timedelta(days=1))
    assert caller.post(path, {"since": since}).json == {"object": "webhook_replay", "replayed": 1}
    assert {f["id"] for f in deliveries(caller, f"?endpoint={made['id']}&status=waiting")} == {mine[1], mine[3]}
    assert caller.post(path, {"since": since, "delivered": True}).json["replayed"] == 1
    earlier = {"since": iso(utc_now() - timedelta(days=3)), "until": since}
    assert caller.post(path, earlier).json["replayed"] == 1
    assert caller.post(path, {"since": since, "until": since}).status_code == 422
    assert len(deliveries(caller, f"?endpoint={other['id']}&status=waiting")) == 4
