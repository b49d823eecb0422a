"""`penstock webhooks` and `penstock events`, against the real application and a real receiver."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from penstock import Client
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.webhooks.models import WebhookDelivery
from penstock.webhooks.sender import Sender
from penstock.webhooks.tasks import deliver
from sqlalchemy import select

from tests.platform.api.conftest import Worker
from tests.platform.cli.conftest import Call
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Receiver, Reply

__all__ = ["receiver"]
SENDER = Sender(timeout_seconds=2.0, allow_loopback=True)


@pytest.fixture
def admin_call(call: Call, url: str, api_key: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `penstock` as the tenant's administrator."""
    with database.transaction() as session:
        tenant_id = session.scalars(select(Tenant.id)).one()
        key = create_api_key(session, tenant_id=tenant_id, name="a", scopes=[Scope.ADMIN], environment="test")[1]
    monkeypatch.setenv("PENSTOCK_URL", url)
    monkeypatch.setenv("PENSTOCK_API_KEY", key)
    return call


@contextmanager
def delivering(database: Database) -> Iterator[None]:
    """What waits is attempted while the block runs, as the control process does."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.02):
            with database.transaction() as session:
                ids = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.status == "waiting")).all()
            for delivery_id in ids:
                deliver(database, SENDER, delivery_id, lease_seconds=30)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def made(call: Call, url: str, *options: str) -> str:
    """A new endpoint's id."""
    result = call("webhooks", "create", url, "--json", *options)
    assert result.exit_code == 0, result.output
    endpoint_id: str = json.loads(result.stdout)["id"]
    return endpoint_id


def test_create_prints_the_secret_alone(admin_call: Call, receiver: Receiver) -> None:
    result = admin_call("webhooks", "create", receiver.url, "--event", "job.failed", "--description", "books")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("whsec_")
    assert len(result.stdout.splitlines()) == 1
    (row,) = admin_call("webhooks", "list").stdout.splitlines()
    endpoint_id, *rest = row.split("\t")
    assert rest == [receiver.url, "job.failed", "well"]
    assert endpoint_id in result.stderr
    rotated = admin_call("webhooks", "rotate", endpoint_id, "--grace", "0").stdout
    assert rotated.startswith("whsec_")
    assert rotated != result.stdout


def test_an_endpoint_is_disabled_enabled_moved_and_deleted(admin_call: Call, receiver: Receiver) -> None:
    endpoint_id = made(admin_call, receiver.url)
    assert admin_call("webhooks", "change", endpoint_id, "--disable").stdout.endswith("disabled: disabled by hand\n")
    assert admin_call("webhooks", "change", endpoint_id, "--enable").stdout.endswith("well\n")
    moved = admin_call(
        "webhooks", "change", endpoint_id, "--address", "http://127.0.0.1:9/new", "--event", "job.queued"
    )
    assert moved.stdout.split("\t")[1:3] == ["http://127.0.0.1:9/new", "job.queued"]
    assert admin_call("webhooks", "delete", endpoint_id).exit_code == 0
    assert admin_call("webhooks", "list").stdout == ""


def test_a_test_says_what_came_of_it(admin_call: Call, database: Database, receiver: Receiver) -> None:
    endpoint_id = made(admin_call, receiver.url)
    receiver.replies.append(Reply(500, body=b"no\x1b[31m room"))
    with delivering(database):
        failed = admin_call("webhooks", "test", endpoint_id)
        passed = admin_call("webhooks", "test", endpoint_id)
    assert (failed.exit_code, passed.exit_code) == (1, 0)
    assert "500 no\\x1b[31m room" in failed.stdout
    assert "is failed" in failed.stderr
    assert ": 200" in passed.stdout


def test_deliveries_are_listed_shown_and_replayed(
    admin_call: Call, connected: Client, worker: Worker, database: Database, receiver: Receiver
) -> None:
    endpoint_id = made(admin_call, receiver.url)
    job = connected.jobs.submit(model="tiny", prompt="x")
    connected.jobs.cancel(job.id)
    (row,) = admin_call("webhooks", "deliveries", "--endpoint", endpoint_id, "--status", "waiting").stdout.splitlines()
    delivery_id, *rest = row.split("\t")
    assert rest[:4] == ["job.cancelled", job.id, "waiting", "0"]
    receiver.replies.append(Reply(410, body=b"gone"))
    deliver(database, SENDER, delivery_id, lease_seconds=30)
    assert "410 gone" in admin_call("webhooks", "show", delivery_id).stdout
    refused = admin_call("webhooks", "replay", delivery_id)
    assert refused.exit_code == 1
    assert "enable it first" in refused.stderr
    admin_call("webhooks", "change", endpoint_id, "--enable")
    assert admin_call("webhooks", "replay", endpoint_id, "--since", "1h").stdout == "1 deliveries will be sent again\n"
    deliver(database, SENDER, delivery_id, lease_seconds=30)
    assert delivery_id in admin_call("webhooks", "replay", delivery_id).stdout
    assert admin_call("webhooks", "replay", delivery_id, "--delivered").exit_code == 2


def test_events_are_listed_from_an_event_on(connected_call: Call, connected: Client, worker: Worker) -> None:
    job = connected.jobs.submit(model="tiny", prompt="x")
    connected.jobs.cancel(job.id)
    rows = [line.split("\t") for line in connected_call("events").stdout.splitlines()]
    assert [(row[0], *row[2:]) for row in rows] == [
        ("1", "job.queued", job.id, "1"),
        ("2", "job.cancelled", job.id, "2"),
    ]
    (line,) = connected_call("events", "--after", "1", "--json").stdout.splitlines()
    assert json.loads(line)["type"] == "job.cancelled"
