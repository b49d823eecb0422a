"""Endpoints that fail, are disabled, move or go. Time passes by changing rows."""

import json
import threading
from datetime import timedelta

import pytest
from penstock.clock import iso, utc_now
from penstock.db import Database
from penstock.jobs import services as jobs
from penstock.webhooks.models import WebhookEndpoint
from penstock.webhooks.retries import Answer
from penstock.webhooks.services import record_attempt, take_due
from sqlalchemy import delete, func, text, update

from tests.platform.api.conftest import Caller
from tests.platform.api.webhooking import (
    DELIVERIES,
    ENDPOINTS,
    attempt,
    attempt_all,
    deliveries,
    finish_a_job,
    make_endpoint,
)
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Receiver, Reply

__all__ = ["receiver"]

pytestmark = pytest.mark.usefixtures("deployment")


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
