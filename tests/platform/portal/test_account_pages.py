"""The pages of a tenant's account: keys, webhooks, usage."""

import re
from collections.abc import Callable
from decimal import Decimal

import pytest
from penstock.auth.models import AuditEntry, User
from penstock.auth.services import Scope, authenticate
from penstock.db import Database
from penstock.errors import Unauthenticated
from penstock.portal.usage_picture import axis, short
from penstock.registry.models import Deployment
from penstock.usage.prices import NewPrice, set_price
from penstock.webhooks.retries import Answer
from penstock.webhooks.services import record_attempt, take_due
from sqlalchemy import select, update

from tests.platform.portal.conftest import Person
from tests.platform.portal.test_job_pages import run_to_end
from tests.platform.portal.test_work_pages import text_of

ADDRESS = "http://127.0.0.1:9/hook"


@pytest.fixture
def administrator(person: Person, database: Database) -> Person:
    with database.transaction() as session:
        session.execute(update(User).where(User.email == person.email).values(role="admin"))
    return person


def an_endpoint(person: Person) -> str:
    made = person.post("/webhooks", {"url": ADDRESS, "description": "books", "events": ["job.succeeded"]})
    assert made.status_code == 200, made.text
    assert made.text.count("whsec_") == 1
    found = re.search(r"/webhooks/(whe_\w+)", made.text)
    assert found is not None
    return found[1]


def test_a_key_is_shown_once_and_opens_what_it_says(administrator: Person, database: Database) -> None:
    made = administrator.post("/keys", {"name": "nightly import", "scopes": ["jobs:read"], "span": "30"})
    secret = re.search(r"psk_test_\w+", made.text)
    assert secret is not None
    assert made.headers["Cache-Control"] == "no-store"
    with database.transaction() as session:
        principal = authenticate(session, secret[0], environment="test")
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "key.created")).one()
    assert (principal.tenant_id, principal.scopes) == (administrator.tenant_id, frozenset({Scope.JOBS_READ}))
    assert (entry.actor_kind, entry.actor_name) == ("user", administrator.email)
    page = administrator.get("/keys").text
    assert "nightly import" in page
    assert secret[0] not in page
    administrator.post(f"/keys/{principal.key_id}/revoke")
    assert "Revoked" in text_of(administrator.get("/keys").text)
    with database.transaction() as session, pytest.raises(Unauthenticated, match="revoked"):
        authenticate(session, secret[0], environment="test")


def test_nobody_hands_out_more_than_they_have(administrator: Person) -> None:
    assert "operator" not in text_of(administrator.get("/keys").text).partition("New key")[2]
    refused = administrator.post("/keys", {"name": "more", "scopes": ["operator"], "span": ""})
    assert refused.status_code == 403
    assert "psk_test_" not in refused.text
    unnamed = administrator.post("/keys", {"name": " ", "scopes": ["jobs:read"], "span": ""})
    assert unnamed.status_code == 422
    assert 'id="name-error"' in unnamed.text


def test_members_see_webhooks_and_change_none(administrator: Person, make_person: Callable[..., Person]) -> None:
    endpoint_id = an_endpoint(administrator)
    page = administrator.get(f"/webhooks/{endpoint_id}").text
    assert "Rotate secret" in page
    member = make_person("bob@example.com")
    assert member.get("/webhooks").status_code == 200
    assert "New endpoint" not in text_of(member.get("/webhooks").text)
    assert member.post("/webhooks", {"url": ADDRESS}).status_code == 403


def test_an_endpoint_is_made_changed_rotated_disabled_and_deleted(administrator: Person) -> None:
    wrong = administrator.post("/webhooks", {"url": "ftp://example.com", "events": []})
    assert wrong.status_code in (400, 422)
    assert "whsec_" not in wrong.text
    endpoint_id = an_endpoint(administrator)
    path = f"/webhooks/{endpoint_id}"
    assert "whsec_" not in administrator.get(path).text, "a secret is shown once"
    administrator.post(path, {"url": ADDRESS + "/2", "description": "more", "events": ["job.failed", "job.succeeded"]})
    assert "/hook/2" in administrator.get(path).text
    rotated = administrator.post(f"{path}/rotate", {"grace": "3600"}).text
    assert rotated.count("whsec_") == 1
    assert "the old one as well" in text_of(rotated)
    administrator.post(path, {"disabled": "yes"})
    assert "Disabled by hand." in text_of(administrator.get(path).text)
    administrator.post(path, {"disabled": "no"})
    assert "Active" in text_of(administrator.get(path).text)
    administrator.post(f"{path}/delete")
    assert administrator.get(path).status_code == 404


def test_deliveries_show_their_attempts_and_are_sent_again(administrator: Person, database: Database) -> None:
    endpoint_id = an_endpoint(administrator)
    sent = administrator.post(f"/webhooks/{endpoint_id}/test").headers["Location"]
    assert "No attempt was made yet." in administrator.get(sent).text
    delivery_id = sent.rsplit("/", 1)[1]
    with database.transaction() as session:
        due = take_due(session, delivery_id, lease_seconds=30)
        assert due is not None
        record_attempt(session, due, Answer(status=503, body="<i>busy</i>", error=None, milliseconds=84))
    shown = administrator.get(f"{sent}/attempts").text
    assert "503 in 84 ms" in shown
    assert "&lt;i&gt;busy" in shown
    assert "<i>busy" not in shown
    assert "hx-trigger" not in shown, "a test is attempted once"
    assert "Failed" in text_of(administrator.get(f"/webhooks/{endpoint_id}?status=failed").text)
    administrator.post(f"{sent}/replay")
    assert "hx-trigger" in administrator.get(f"{sent}/attempts").text
    with database.transaction() as session:
        due = take_due(session, delivery_id, lease_seconds=30)
        assert due is not None
        record_attempt(session, due, Answer(status=200, body="", error=None, milliseconds=3))
    replayed = administrator.post(f"/webhooks/{endpoint_id}/replay", {"since": "2020-01-01T00:00", "delivered": "yes"})
    assert "1 delivery is sent again." in text_of(administrator.get(replayed.headers["Location"]).text)
    backwards = administrator.post(
        f"/webhooks/{endpoint_id}/replay", {"since": "2021-01-01T00:00", "until": "2020-01-01T00:00"}
    )
    assert backwards.status_code == 422
    assert "since must lie before until" in text_of(backwards.text).lower()


def test_a_jobs_page_tells_of_its_webhooks(administrator: Person, deployment: Deployment, database: Database) -> None:
    an_endpoint(administrator)
    job = administrator.submit()
    run_to_end(database, deployment, "done")
    page = administrator.get(f"/jobs/{job.id}").text
    assert "job.succeeded" in page.partition('id="job-webhooks"')[2]
    assert f'hx-get="/jobs/{job.id}/webhooks"' in page, "it follows what waits"
    assert ADDRESS in administrator.get(f"/jobs/{job.id}/webhooks").text


def test_usage_is_summed_by_day_and_group(person: Person, deployment: Deployment, database: Database) -> None:
    assert "Nothing was used in this time" in person.get("/usage").text
    with database.transaction() as session:
        price = NewPrice("tiny", "EUR", Decimal(0), Decimal(0), Decimal(1_000_000))
        set_price(session, price, created_by="test")
    for tags in (["a"], ["a", "b"]):
        person.submit(tags=tags)
        run_to_end(database, deployment, "one", "two")
    page = text_of(person.get("/usage?days=7").text)
    assert "Jobs 2 Prompt tokens 14 From the cache 6 Output tokens 4" in page
    assert "Cost 4.00 EUR" in page
    by_tag = text_of(person.get("/usage?by=tag").text).partition("By tag")[2]
    assert "a 2 14" in by_tag
    assert "b 1 7" in by_tag
    table = person.get("/usage/table.csv?by=tag&days=7")
    assert table.mimetype == "text/csv"
    assert len(table.text.splitlines()) == 3
    for query in ("days=8", "by=mood"):
        assert person.get(f"/usage?{query}").status_code == 422


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (1, "0 1"), (3, "0 1 2 3"), (4, "0 1 2 3 4"), (7, "0 2 4 6 8"), (9, "0 2.5 5 7.5 10"), (10, "0 2.5 5 7.5 10"),
        (11, "0 5 10 15"), (999, "0 250 500 750 1K"), (1001, "0 500 1K 1.5K"), (186_020, "0 50K 100K 150K 200K"),
        (2_400_000, "0 1M 2M 3M"), (9_000_000_000, "0 2.5B 5B 7.5B 10B"),
    ],
)  # fmt: skip
def test_the_axis_has_round_numbers_and_room_for_the_highest_bar(most: int, ticks: str) -> None:
    made = axis(most)
    assert " ".join(map(short, made.ticks)) == ticks
    assert most <= made.top <= max(2 * most, 1)


def test_a_models_jobs_with_and_without_a_price_are_one_row(
    person: Person, deployment: Deployment, database: Database
) -> None:
    for currency in (None, "EUR", "USD"):
        if currency is not None:
            with database.transaction() as session:
                price = NewPrice("tiny", currency, Decimal(0), Decimal(0), Decimal(1_000_000))
                set_price(session, price, created_by="test")
        person.submit()
        run_to_end(database, deployment, "one", "two")
    page = person.get("/usage").text
    table = text_of(page).partition("By model")[2]
    assert table.count("tiny") == 1
    assert re.search(r"tiny 3 .* 2.00 EUR 2.00 USD 1 job without a price", table)
    assert re.findall(r"<li>([^<]+)</li>", page)[:2] == ["30 tokens", "20"]
