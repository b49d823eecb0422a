"""A delivery's life from its row, with real services and a real receiver. Time passes by changing `next_attempt_at`."""

import json
import threading
from datetime import datetime
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.webhooks.models import WebhookAttempt, WebhookDelivery
from penstock.webhooks.retries import MOST_ATTEMPTS, RETRY_DELAYS, Answer
from penstock.webhooks.sender import Sender
from penstock.webhooks.services import DueDelivery, due_deliveries, record_attempt, take_due
from penstock.webhooks.tasks import deliver, encode, headers_of
from sqlalchemy import func, select, update
from standardwebhooks import Webhook

from tests.factories import make_deployment, make_tenant, submit_job
from tests.platform.webhooks.receiver import Receiver, Reply

SENDER = Sender(timeout_seconds=0.5, allow_loopback=True)
LEASE_SECONDS = 30.0


def owe(database: Database, url: str) -> str:
    """A job that was cancelled while it waited, so that its final event is owed to `url`; returns the delivery's id."""
    with database.transaction() as session:
        tenant = make_tenant(session)
        make_deployment(session)
        job = submit_job(session, tenant, webhook={"url": url})
        jobs.cancel(session, tenant.id, job.id)
    with database.transaction() as session:
        return session.scalars(select(WebhookDelivery.id)).one()


def attempt(database: Database, delivery_id: str, sender: Sender = SENDER) -> str | None:
    return deliver(database, sender, delivery_id, lease_seconds=LEASE_SECONDS)


def let_time_pass(database: Database, delivery_id: str) -> None:
    """Bring the next attempt into the present."""
    with database.transaction() as session:
        session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(next_attempt_at=func.now())
        )


def look(database: Database, delivery_id: str) -> tuple[WebhookDelivery, list[WebhookAttempt]]:
    with database.transaction() as session:
        delivery = session.get_one(WebhookDelivery, delivery_id)
        return delivery, list(session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.number)))


def seconds_until(moment: datetime | None) -> float:
    assert moment is not None
    return (moment - utc_now()).total_seconds()


def test_a_delivery_is_signed_and_done(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    assert attempt(database, delivery_id) == "delivered"
    (request,) = receiver.requests
    with database.transaction() as session:
        job, secret = session.execute(select(Job, Tenant.webhook_secret).join(Tenant, Tenant.id == Job.tenant_id)).one()
    payload = Webhook(secret).verify(request.body, request.headers)
    assert request.headers["webhook-id"] == delivery_id
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("Penstock/")
    assert payload["type"] == "job.cancelled"
    assert payload["event_number"] == 2
    assert payload["data"]["id"] == job.id
    assert payload["data"]["status"] == "cancelled"
    delivery, (only,) = look(database, delivery_id)
    assert (delivery.status, delivery.attempts, delivery.next_attempt_at) == ("delivered", 1, None)
    assert delivery.delivered_at is not None
    assert (only.status_code, only.error) == (200, None)


def test_what_was_delivered_is_never_sent_again(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    attempt(database, delivery_id)
    assert attempt(database, delivery_id) is None
    assert len(receiver.requests) == 1


def test_a_failure_is_tried_again_later_with_the_same_id(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.append(Reply(500, body=b"try later"))
    assert attempt(database, delivery_id) == "waiting"
    delivery, _ = look(database, delivery_id)
    assert 4 < seconds_until(delivery.next_attempt_at) <= 5.5
    assert attempt(database, delivery_id) is None
    let_time_pass(database, delivery_id)
    assert attempt(database, delivery_id) == "delivered"
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    _, attempts = look(database, delivery_id)
    assert [(row.number, row.status_code, row.response_body) for row in attempts] == [
        (1, 500, "try later"),
        (2, 200, ""),
    ]


def test_a_receiver_that_never_answers_is_given_up_after_the_whole_schedule(
    database: Database, receiver: Receiver
) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.extend(Reply(503) for _ in range(MOST_ATTEMPTS))
    for delay in RETRY_DELAYS:
        assert attempt(database, delivery_id) == "waiting"
        delivery, _ = look(database, delivery_id)
        left = seconds_until(delivery.next_attempt_at)
        assert delay.total_seconds() - 5 < left <= delay.total_seconds() * 1.1
        let_time_pass(database, delivery_id)
    assert attempt(database, delivery_id) == "failed"
    delivery, attempts = look(database, delivery_id)
    assert (delivery.attempts, delivery.next_attempt_at, len(attempts)) == (10, None, 10)
    assert len(receiver.requests) == 10


def test_the_receiver_may_ask_for_more_time(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.append(Reply(429, {"Retry-After": "120"}))
    attempt(database, delivery_id)
    delivery, _ = look(database, delivery_id)
    assert 115 < seconds_until(delivery.next_attempt_at) <= 120


def test_gone_means_gone(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.append(Reply(410))
    assert attempt(database, delivery_id) == "failed"


def test_a_redirect_is_a_failure_that_is_tried_again(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.append(Reply(301, {"Location": receiver.url}))
    assert attempt(database, delivery_id) == "waiting"
    assert len(receiver.requests) == 1


def test_a_slow_receiver_is_a_failure_that_is_tried_again(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    receiver.replies.append(Reply(200, body=b"x" * 100, drip=0.1))
    assert attempt(database, delivery_id) == "waiting"
    _, (only,) = look(database, delivery_id)
    assert only.status_code is None
    assert only.error == "no complete answer within 0.5 s"


def test_a_refused_address_fails_at_once_and_says_why(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    strict = Sender(timeout_seconds=0.5, allow_loopback=False)
    assert attempt(database, delivery_id, strict) == "failed"
    _, (only,) = look(database, delivery_id)
    assert only.error is not None
    assert "127.0.0.1 is a loopback address" in only.error
    assert receiver.requests == []


def test_two_processes_never_send_the_same_attempt(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    start = threading.Barrier(4)
    results: list[str | None] = []

    def race() -> None:
        start.wait()
        results.append(attempt(database, delivery_id))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=str) == [None, None, None, "delivered"]
    assert len(receiver.requests) == 1


def test_a_process_that_dies_while_sending_loses_nothing(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    assert take(database, delivery_id) is not None
    assert attempt(database, delivery_id) is None
    delivery, _ = look(database, delivery_id)
    assert 0 < seconds_until(delivery.next_attempt_at) <= LEASE_SECONDS
    let_time_pass(database, delivery_id)
    assert attempt(database, delivery_id) == "delivered"


def test_a_process_that_dies_in_every_attempt_does_not_send_for_ever(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    for _ in range(MOST_ATTEMPTS):
        assert take(database, delivery_id) is not None
        let_time_pass(database, delivery_id)
    assert take(database, delivery_id) is None
    delivery, _ = look(database, delivery_id)
    assert delivery.status == "failed"


def test_an_attempt_that_comes_back_too_late_moves_nothing(database: Database, receiver: Receiver) -> None:
    delivery_id = owe(database, receiver.url)
    slow = take(database, delivery_id)
    assert slow is not None
    let_time_pass(database, delivery_id)
    receiver.replies.append(Reply(500))
    assert attempt(database, delivery_id) == "waiting"
    with database.transaction() as session:
        assert record_attempt(session, slow, Answer(5, status=410)) is None
    delivery, attempts = look(database, delivery_id)
    assert delivery.status == "waiting"
    assert [row.status_code for row in attempts] == [410, 500]


def test_what_is_due_is_found_the_longest_overdue_first(database: Database, receiver: Receiver) -> None:
    with database.transaction() as session:
        tenant = make_tenant(session)
        make_deployment(session)
        for _ in range(3):
            jobs.cancel(session, tenant.id, submit_job(session, tenant, webhook={"url": receiver.url}).id)
    with database.transaction() as session:
        ids = list(session.scalars(select(WebhookDelivery.id).order_by(WebhookDelivery.id)))
        for seconds, delivery_id in zip((-60, -3600, 60), ids, strict=True):
            session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.id == delivery_id)
                .values(next_attempt_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds))
            )
    with database.transaction() as session:
        assert due_deliveries(session, 10) == [ids[1], ids[0]]
        assert due_deliveries(session, 1) == [ids[1]]


@pytest.mark.parametrize("traceparent", [None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
def test_the_jobs_trace_goes_with_it(traceparent: str | None) -> None:
    due = DueDelivery("msg_1", 1, "http://x", {}, ("whsec_dGVzdA==",), traceparent)
    assert headers_of(due, b"{}", 5).get("traceparent") == traceparent


def test_the_body_is_the_payloads_json() -> None:
    payload: dict[str, Any] = {"type": "job.failed", "data": {"text": "Zürich “1”\n"}}
    assert json.loads(encode(payload)) == payload


def take(database: Database, delivery_id: str) -> DueDelivery | None:
    with database.transaction() as session:
        return take_due(session, delivery_id, lease_seconds=LEASE_SECONDS)
