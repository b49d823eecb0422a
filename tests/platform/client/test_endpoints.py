"""`client.webhooks` and the feed against the real application, with connections that are cut."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice

import pytest
from penstock import Client
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.client import PenstockError
from penstock.db import Database
from penstock.errors import AddressRefused, Forbidden, NotFound, ValidationFailed, WebhookEndpointDisabled
from penstock.usage.budgets import set_budget
from penstock.webhooks.sender import Sender
from penstock.webhooks.tasks import deliver
from sqlalchemy import select

from tests.platform.api.conftest import Worker
from tests.platform.client.live import CuttingProxy
from tests.platform.client.real import api_key, app, connected, url, worker
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Receiver, Reply

__all__ = ["api_key", "app", "connected", "receiver", "url", "worker"]  # fixtures
SENDER = Sender(timeout_seconds=2.0, allow_loopback=True)


@pytest.fixture
def admin(connected: Client, url: str, database: Database) -> Client:
    """A client that may do everything in the tenant."""
    with database.transaction() as session:
        tenant_id = session.scalars(select(Tenant.id)).one()
        key = create_api_key(session, tenant_id=tenant_id, name="a", scopes=[Scope.ADMIN], environment="test")[1]
    return Client(url, key, max_retries=0)


def attempt(database: Database, delivery_id: str) -> None:
    deliver(database, SENDER, delivery_id, lease_seconds=30)


def test_an_endpoints_whole_life(admin: Client, worker: Worker, database: Database, receiver: Receiver) -> None:
    made = admin.webhooks.create(receiver.url, description="books", events=["job.cancelled"])
    assert made.secret is not None
    assert [found.id for found in admin.webhooks.list()] == [made.id]
    assert admin.webhooks.get(made.id).secret is None
    assert admin.webhooks.change(made.id, description="accounts").description == "accounts"
    rotated = admin.webhooks.rotate_secret(made.id, grace_seconds=60)
    assert rotated.secret not in (None, made.secret)
    assert rotated.previous_secret_until is not None

    tested = admin.webhooks.test(made.id)
    attempt(database, tested.id)
    assert admin.webhooks.delivery(tested.id).status == "delivered"

    since = datetime.now(UTC) - timedelta(minutes=5)
    job = admin.jobs.submit(model="tiny", prompt="x")
    admin.jobs.cancel(job.id)
    (owed,) = admin.webhooks.deliveries(job_id=job.id, page_size=1)
    receiver.replies.append(Reply(410, body=b"gone"))
    attempt(database, owed.id)
    (tried,) = admin.webhooks.delivery(owed.id).attempt_history
    assert (tried.status_code, tried.response_body) == (410, "gone")
    assert admin.webhooks.get(made.id).disabled_reason is not None
    with pytest.raises(WebhookEndpointDisabled):
        admin.webhooks.replay(owed.id)
    assert admin.webhooks.change(made.id, disabled=False).disabled_at is None
    assert admin.webhooks.replay_since(made.id, since, until=since + timedelta(seconds=1)) == 0
    assert admin.webhooks.replay_since(made.id, since) == 1
    attempt(database, owed.id)
    assert [d.status for d in admin.webhooks.deliveries(endpoint_id=made.id, page_size=1)] == ["delivered"] * 2
    assert admin.webhooks.replay(owed.id).status == "waiting"
    admin.webhooks.delete(made.id)
    with pytest.raises(NotFound):
        admin.webhooks.get(made.id)


def test_a_key_from_its_making_to_its_end(admin: Client, worker: Worker) -> None:
    moment = datetime(2099, 1, 1, tzinfo=UTC)
    made = admin.keys.create("nightly", scopes=["jobs:read"], expires_at=moment, models=["tiny"])
    assert made.key is not None
    assert (made.name, made.scopes, made.models, made.expires_at) == ("nightly", ["jobs:read"], ["tiny"], moment)
    with Client(admin.url, made.key) as reader:
        assert list(reader.jobs.list()) == []
        with pytest.raises(Forbidden):
            reader.jobs.submit(model="tiny", prompt="x")
    assert admin.keys.get(made.id).key is None
    assert admin.keys.revoke(made.id).revoked_at is not None
    assert [key.id for key in admin.keys.list() if key.revoked_at is not None] == [made.id]


def test_usage_budgets_and_quotas_are_told(admin: Client, worker: Worker, database: Database) -> None:
    for tag in ("a", "b"):
        admin.jobs.submit(model="tiny", prompt="one two", tags=[tag])
        worker.claim()
        worker.write("Hi")
        worker.finish()
    with database.transaction() as session:
        set_budget(session, session.scalars(select(Tenant.id)).one(), "EUR", Decimal("12.5"))

    rows = list(admin.usage(["tag", "model"], since=datetime.now(UTC) - timedelta(hours=1), page_size=1))
    assert [(row.group, row.jobs, row.output_tokens, row.cost) for row in rows] == [
        ({"tag": tag, "model": "tiny"}, 1, 1, None) for tag in ("a", "b")
    ]
    assert [row.jobs for row in admin.usage(["model"], tag="a")] == [1]
    (budget,) = admin.budgets()
    assert (budget.currency, budget.amount, budget.spent) == ("EUR", Decimal("12.5"), Decimal(0))
    quotas = admin.quotas()
    assert (quotas.queued_jobs.waiting, quotas.tokens_per_minute.limit) == (0, None)


def test_refusals_are_the_servers_errors(admin: Client, connected: Client) -> None:
    with pytest.raises(AddressRefused):
        admin.webhooks.create("http://10.0.0.1/")
    with pytest.raises(Forbidden):
        connected.webhooks.create("http://127.0.0.1/")
    with pytest.raises(ValidationFailed):
        list(connected.events(after="7"))


def test_the_feed_is_read_page_by_page_and_further_later(connected: Client, worker: Worker) -> None:
    ids = [connected.jobs.submit(model="tiny", prompt="x").id for _ in range(5)]
    found = list(connected.events(page_size=2))
    assert [event.job_id for event in found] == ids
    connected.jobs.cancel(ids[0])
    assert [(e.type, e.event_number) for e in connected.events(after=found[-1].id)] == [("job.cancelled", 2)]


def test_following_outlasts_cut_connections(connected: Client, url: str, api_key: str, worker: Worker) -> None:
    ids = [connected.jobs.submit(model="tiny", prompt="x").id for _ in range(12)]
    lost: list[PenstockError] = []
    with (
        CuttingProxy(int(url.rpartition(":")[2]), budget=1200, cuts=4) as proxy,
        Client(proxy.url, api_key) as client,
    ):
        followed = client.follow_events(on_lost=lost.append)
        found = list(islice(followed, 12))
        late = threading.Timer(0.2, lambda: ids.append(connected.jobs.submit(model="tiny", prompt="x").id))
        late.start()
        found.append(next(followed))
        late.join()
        connected.jobs.cancel(ids[0])
        followed.close()  # type: ignore[attr-defined]  # it is a generator
    assert [event.job_id for event in found] == ids
    assert [event.id for event in found] == [str(number) for number in range(1, 14)]
    assert len(lost) >= 1


def test_following_from_now_begins_at_the_present_end(connected: Client, worker: Worker) -> None:
    old = connected.jobs.submit(model="tiny", prompt="x")
    late = threading.Timer(0.5, lambda: connected.jobs.cancel(old.id))
    late.start()
    followed = connected.follow_events(after="now")
    assert next(followed).type == "job.cancelled"
    late.join()
    followed.close()  # type: ignore[attr-defined]  # it is a generator
