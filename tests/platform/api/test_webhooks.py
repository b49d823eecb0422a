"""Webhook endpoints over HTTP, with real deliveries to a real receiver. Time passes by changing rows."""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.auth.services import Scope
from penstock.batches.telling import BatchEvent
from penstock.bulk.telling import BulkEvent
from penstock.clock import iso, utc_now
from penstock.db import Database
from penstock.feedback.services import FEEDBACK_GIVEN
from penstock.jobs import services as jobs
from penstock.jobs.events import EventType
from penstock.settings import Settings
from penstock.webhooks.documents import (
    WebhookDeliveryDetail,
    WebhookDeliveryDocument,
    WebhookEndpointDocument,
    WebhookEndpointWithSecret,
)
from penstock.webhooks.endpoints import MOST_ENDPOINTS, EndpointEvent
from penstock.webhooks.models import WebhookDelivery, WebhookEndpoint
from penstock.webhooks.retries import MOST_ATTEMPTS, Answer
from penstock.webhooks.schemas import WebhookEventName
from penstock.webhooks.sender import Sender
from penstock.webhooks.services import record_attempt, take_due
from penstock.webhooks.tasks import deliver
from redis import Redis
from sqlalchemy import delete, func, text, update
from standardwebhooks import Webhook, WebhookVerificationError

from tests.factories import WordCounter
from tests.platform.api.conftest import BODY, Caller
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Received, Receiver, Reply

__all__ = ["receiver"]

pytestmark = pytest.mark.usefixtures("deployment")
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


def test_an_endpoint_is_made_with_its_secret_once(caller: Caller, receiver: Receiver) -> None:
    made = caller.post(ENDPOINTS, {"url": receiver.url, "description": " books "})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    document = WebhookEndpointWithSecret.model_validate(made.json)
    assert document.secret.startswith("whsec_")
    assert document.description == "books"
    assert document.events == ["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
    got = caller.get(made.headers["Location"])
    WebhookEndpointDocument.model_validate(got.json)
    assert made.json == got.json | {"secret": document.secret}
    assert caller.get(ENDPOINTS).json["data"] == [got.json]
    assert document.secret not in got.text + caller.get("/v1/audit").text


def test_it_gets_the_events_that_it_named_of_every_job(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, receiver.url, events=["job.queued"])
    job_id = finish_a_job(caller)
    (queued,) = deliveries(caller)
    WebhookDeliveryDocument.model_validate(queued)
    assert (queued["endpoint_id"], queued["job_id"], queued["event_number"]) == (made["id"], job_id, 1)
    assert attempt_all(database, caller) == ["delivered"]
    (request,) = receiver.requests
    payload = json.loads(request.body)
    assert is_signed_by(made["secret"], request)
    assert (payload["type"], payload["event_number"], payload["data"]["id"]) == ("job.queued", 1, job_id)
    assert payload["data"]["status"] == "queued"
    detail = WebhookDeliveryDetail.model_validate(caller.get(f"{DELIVERIES}/{queued['id']}").json)
    assert detail.payload == payload
    assert [(tried.number, tried.status_code) for tried in detail.attempt_history] == [(1, 200)]


def test_a_jobs_own_address_and_endpoints_each_get_it(caller: Caller, receiver: Receiver) -> None:
    endpoints = {make_endpoint(caller, receiver.url)["id"] for _ in range(2)}
    job_id = caller.submit(webhook={"url": receiver.url})
    caller.post(f"/v1/jobs/{job_id}/cancel")
    assert {found["endpoint_id"] for found in deliveries(caller, f"?job={job_id}")} == {None, *endpoints}


def test_endpoints_of_others_and_disabled_ones_get_nothing(
    caller: Caller, make_caller: Callable[..., Caller], receiver: Receiver
) -> None:
    other = make_caller()
    make_endpoint(other, receiver.url)
    caller.call("PATCH", f"{ENDPOINTS}/{make_endpoint(caller, receiver.url)['id']}", {"disabled": True})
    finish_a_job(caller)
    assert deliveries(caller) == deliveries(other) == []


def test_every_event_can_be_named() -> None:
    assert set(get_args(WebhookEventName)) == {
        *EventType,
        *BatchEvent,
        *BulkEvent,
        EndpointEvent.DISABLED,
        FEEDBACK_GIVEN,
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "https://1.1.1.1/", "events": []}, "events"),
        ({"url": "https://1.1.1.1/", "events": ["job.done"]}, "events.0"),
        ({"url": "https://1.1.1.1/", "events": ["job.failed", "job.failed"]}, "events"),
        ({"url": "https://1.1.1.1/", "secret": "whsec_x"}, "secret"),
        ({"url": "https://1.1.1.1/\n", "events": ["job.failed"]}, "url"),
    ],
)
def test_what_is_wrong_is_named(caller: Caller, body: Any, field: str) -> None:
    answer = caller.post(ENDPOINTS, body)
    assert (answer.status_code, answer.json["field"]) == (422, field)


ADDRESSES = [
    "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://[::1]/",
    "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://10.0.0.1/", "http://169.254.169.254/latest",
    "http://100.64.0.1/", "http://localhost/", "http://a.localhost./", "http://[fe80::1]/", "http://0/",
]  # fmt: skip


@pytest.fixture
def strict(settings: Settings, database: Database, redis: Redis, caller: Caller) -> Caller:
    """The caller at a server that lets webhooks go to public addresses alone."""
    tight = settings.model_copy(update={"webhook_allow_loopback": False})
    app: Flask = create_app(tight, prompts=WordCounter(), database=database, redis=redis)
    return Caller(app.test_client(), caller.tenant_id, caller.key)


@pytest.mark.parametrize("url", ADDRESSES)
def test_no_inner_address_is_taken(strict: Caller, url: str) -> None:
    made = strict.post(ENDPOINTS, {"url": url})
    assert (made.status_code, made.json["field"]) == (422, "url")
    submitted = strict.post("/v1/jobs", BODY | {"webhook": {"url": url}})
    assert submitted.status_code == 422
    assert submitted.json["field"].startswith("webhook")
    assert strict.get("/v1/jobs").json["data"] == strict.get(ENDPOINTS).json["data"] == []


def test_nor_is_an_endpoint_moved_to_one_nor_to_an_unknown_name(caller: Caller, strict: Caller) -> None:
    path = f"{ENDPOINTS}/{make_endpoint(caller, 'http://127.0.0.1:9/')['id']}"
    assert strict.call("PATCH", path, {"url": "http://10.0.0.1/"}).json["code"] == "webhook_address_refused"
    assert strict.call("PATCH", path, {"url": "http://no-such-host.invalid/"}).json["code"] == "webhook_address_refused"
    assert strict.call("PATCH", path, {"url": "https://1.1.1.1/new"}).json["url"] == "https://1.1.1.1/new"


def test_public_addresses_are_taken_by_jobs(strict: Caller) -> None:
    assert strict.post("/v1/jobs", BODY | {"webhook": {"url": "https://hooks.example/x"}}).status_code == 202


def test_who_may_only_use_jobs_changes_no_endpoint(
    caller: Caller, make_caller: Callable[..., Caller], receiver: Receiver
) -> None:
    program = make_caller((Scope.JOBS_WRITE, Scope.JOBS_READ))
    assert program.post(ENDPOINTS, {"url": receiver.url}).json["code"] == "forbidden"
    assert program.get(ENDPOINTS).json["data"] == []


def test_there_is_a_limit(caller: Caller, receiver: Receiver) -> None:
    for _ in range(MOST_ENDPOINTS):
        make_endpoint(caller, receiver.url)
    answer = caller.post(ENDPOINTS, {"url": receiver.url})
    assert (answer.status_code, answer.json["code"]) == (409, "too_many_webhook_endpoints")


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


def test_gone_disables_at_once_and_everybody_is_told(caller: Caller, database: Database, receiver: Receiver) -> None:
    gone = make_endpoint(caller, receiver.url)
    watcher = make_endpoint(caller, receiver.url, events=["webhook_endpoint.disabled"])
    for _ in range(2):
        finish_a_job(caller)
    first, second = reversed(deliveries(caller))
    receiver.replies.append(Reply(410))
    assert attempt(database, first["id"]) == "failed"
    document = caller.get(f"{ENDPOINTS}/{gone['id']}").json
    assert document["disabled_reason"] == "its receiver answered 410: gone"
    assert {f["id"]: f["status"] for f in deliveries(caller, f"?endpoint={gone['id']}")} == {
        first["id"]: "failed",
        second["id"]: "failed",
    }
    (told,) = deliveries(caller, f"?endpoint={watcher['id']}")
    assert (told["type"], told["job_id"]) == ("webhook_endpoint.disabled", None)
    assert attempt(database, told["id"]) == "delivered"
    assert json.loads(receiver.requests[-1].body)["data"] == document
    event = caller.get("/v1/events").json["data"][-1]
    assert (event["type"], event["job_id"], event["data"]) == ("webhook_endpoint.disabled", None, document)
    entry = caller.get("/v1/audit?action=webhook_endpoint.disabled").json["data"][0]
    assert (entry["actor"]["kind"], entry["target"]) == ("system", gone["id"])
    finish_a_job(caller)
    assert len(deliveries(caller, f"?endpoint={gone['id']}")) == 2


def fail_before(database: Database, *, failures: int, days: float) -> None:
    """Have every endpoint fail so often and for so long."""
    with database.transaction() as session:
        session.execute(
            update(WebhookEndpoint).values(failures=failures, failing_since=func.now() - timedelta(days=days))
        )


@pytest.mark.parametrize(
    ("failures", "days", "disabled"), [(9, 5.01, True), (9, 4.9, False), (8, 30.0, False), (200, 5.01, True)]
)
def test_a_long_failing_disables(
    caller: Caller, database: Database, receiver: Receiver, failures: int, days: float, disabled: bool
) -> None:
    made = make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    fail_before(database, failures=failures, days=days)
    receiver.replies.append(Reply(500))
    assert attempt_all(database, caller) == ["failed" if disabled else "waiting"]
    document = caller.get(f"{ENDPOINTS}/{made['id']}").json
    assert document["failures"] == failures + 1
    assert (document["disabled_at"] is not None) == disabled
    assert not disabled or f"{failures + 1} attempts failed in 5.0 days" in document["disabled_reason"]


def test_a_success_ends_the_failing(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    receiver.replies.append(Reply(500))
    attempt_all(database, caller)
    failing = caller.get(f"{ENDPOINTS}/{made['id']}").json
    assert (failing["failures"], failing["failing_since"] is None) == (1, False)
    attempt_all(database, caller)
    well = caller.get(f"{ENDPOINTS}/{made['id']}").json
    assert (well["failures"], well["failing_since"]) == (0, None)


def test_enabled_again_it_gets_what_failed_and_what_comes(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    made = make_endpoint(caller, receiver.url)
    path = f"{ENDPOINTS}/{made['id']}"
    finish_a_job(caller)
    caller.call("PATCH", path, {"disabled": True})
    fail_before(database, failures=12, days=6)
    since = {"since": iso(utc_now() - timedelta(days=1))}
    (found,) = deliveries(caller)
    for refused in (caller.post(f"{path}/replay", since), caller.post(f"{DELIVERIES}/{found['id']}/replay")):
        assert (refused.status_code, refused.json["code"]) == (409, "webhook_endpoint_disabled")
    enabled = caller.call("PATCH", path, {"disabled": False}).json
    assert (enabled["disabled_at"], enabled["failures"], enabled["failing_since"]) == (None, 0, None)
    assert caller.post(f"{path}/replay", since).json["replayed"] == 1
    finish_a_job(caller)
    assert attempt_all(database, caller) == ["delivered", "delivered"]
    actions = [entry["action"].rpartition(".")[2] for entry in caller.get("/v1/audit").json["data"]]
    assert actions == ["enabled", "disabled", "created"]


def test_retries_go_to_the_new_address(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, "http://127.0.0.1:9/")
    finish_a_job(caller)
    changed = caller.call("PATCH", f"{ENDPOINTS}/{made['id']}", {"url": receiver.url})
    assert changed.json["url"] == receiver.url
    assert attempt_all(database, caller) == ["delivered"]
    assert deliveries(caller)[0]["url"] == receiver.url


def test_what_was_queued_while_its_endpoint_was_disabled_is_not_sent(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    with database.transaction() as session:
        session.execute(update(WebhookEndpoint).values(disabled_at=func.now(), disabled_reason="a race"))
    assert attempt_all(database, caller) == [None]
    assert deliveries(caller)[0]["status"] == "failed"
    assert receiver.requests == []


def test_what_arrives_while_its_endpoint_is_disabled_has_arrived(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    made = make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    (found,) = deliveries(caller)
    with database.transaction() as session:
        due = take_due(session, found["id"], lease_seconds=30)
    assert due is not None
    caller.call("PATCH", f"{ENDPOINTS}/{made['id']}", {"disabled": True})
    assert deliveries(caller)[0]["status"] == "failed"
    with database.transaction() as session:
        assert record_attempt(session, due, Answer(5, status=200)) == "delivered"
    assert deliveries(caller)[0]["status"] == "delivered"


def test_deleting_takes_the_log_along_also_what_is_on_its_way(
    caller: Caller, database: Database, receiver: Receiver
) -> None:
    made = make_endpoint(caller, receiver.url)
    finish_a_job(caller)
    (found,) = deliveries(caller)
    with database.transaction() as session:
        due = take_due(session, found["id"], lease_seconds=30)
    assert due is not None
    assert caller.call("DELETE", f"{ENDPOINTS}/{made['id']}").status_code == 204
    with database.transaction() as session:
        assert record_attempt(session, due, Answer(5, status=500)) is None
    assert deliveries(caller) == caller.get(ENDPOINTS).json["data"] == []
    assert caller.get(f"{DELIVERIES}/{found['id']}").status_code == 404


def somebody_waits(database: Database) -> bool:
    """Whether a transaction waits for another's lock."""
    with database.transaction() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_a_job_ends_while_an_endpoint_is_being_deleted(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, receiver.url)
    job_id = caller.submit()
    ended = threading.Event()

    def end() -> None:
        with database.transaction() as session:
            jobs.cancel(session, caller.tenant_id, job_id)
        ended.set()

    with database.transaction() as session:
        session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == made["id"]))
        thread = threading.Thread(target=end)
        thread.start()
        while not somebody_waits(database):
            assert not ended.wait(0.01)
    thread.join()
    assert ended.is_set()
    assert deliveries(caller) == []
