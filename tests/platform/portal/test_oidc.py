"""Signing in through an identity provider: a real small one, over HTTP, honest and not."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from penstock.app import create_app
from penstock.auth.models import AuditEntry, Tenant, User
from penstock.db import Database
from penstock.errors import SettingsError
from penstock.ids import new_id
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from tests.factories import WordCounter, make_tenant
from tests.platform.portal.provider import CLIENT_ID, CLIENT_SECRET, Provider, running_provider, signing_key

ANN = "ann@example.com"
Settle = Callable[..., Flask]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def offer(settings: Settings, database: Database, redis: Redis, provider: Provider) -> Iterator[Settle]:
    """Makes the application with the provider and further settings."""
    apps: list[Flask] = []

    def make(**changes: Any) -> Flask:
        configured = {
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": SecretStr(CLIENT_SECRET),
            "oidc_name": "Acme ID",
        }
        changed = settings.model_copy(update=configured | changes)
        apps.append(create_app(changed, prompts=WordCounter(), database=database, redis=redis))
        return apps[-1]

    yield make
    for app in apps:
        app.extensions["penstock"].stop_streams()
        app.extensions["penstock"].live.join()


@pytest.fixture
def app(offer: Settle) -> Flask:
    return offer()


@pytest.fixture
def tenant(database: Database) -> Tenant:
    with database.transaction() as session:
        return make_tenant(session, "acme")


def invite(database: Database, tenant: Tenant, email: str = ANN, **columns: Any) -> str:
    with database.transaction() as session:
        user = User(id=new_id("usr"), tenant_id=tenant.id, email=email, password_hash=None, role="member", **columns)
        session.add(user)
        return user.id


def begin(browser: FlaskClient, query: str = "") -> str:
    """Go to the provider and say yes there: where the provider sends the browser."""
    there = browser.get(f"/sign-in/oidc{query}")
    assert there.status_code == 302, there.text
    back = httpx.get(there.headers["Location"])
    assert back.status_code == 302, back.text
    return str(back.headers["Location"])


def sign_in(app: Flask, query: str = "") -> tuple[FlaskClient, TestResponse]:
    browser = app.test_client()
    return browser, browser.get(begin(browser, query))


def is_signed_in(browser: FlaskClient) -> bool:
    return browser.get("/jobs").status_code == 200


def audited(database: Database) -> list[tuple[str, dict[str, Any]]]:
    with database.transaction() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.created_at, AuditEntry.action))
        return [(entry.action, entry.details) for entry in entries]


def test_the_page_offers_the_provider_where_there_is_one(
    app: Flask, settings: Settings, database: Database, redis: Redis
) -> None:
    assert "Sign in with Acme ID" in app.test_client().get("/sign-in").text
    assert 'href="/sign-in/oidc?next=/jobs/new"' in app.test_client().get("/sign-in?next=/jobs/new").text
    without = create_app(settings, prompts=WordCounter(), database=database, redis=redis).test_client()
    assert "oidc" not in without.get("/sign-in").text
    assert without.get("/sign-in/oidc").status_code == 404


def test_who_was_let_in_signs_in_and_is_known_from_then_on(
    app: Flask, provider: Provider, database: Database, tenant: Tenant
) -> None:
    user_id = invite(database, tenant)
    browser, back = sign_in(app, "?next=/jobs/new")
    assert (back.status_code, back.headers["Location"]) == (303, "/jobs/new")
    assert is_signed_in(browser)
    with database.transaction() as session:
        user = session.get_one(User, user_id)
    assert (user.oidc_issuer, user.oidc_subject) == (provider.issuer, "1234")
    assert user.last_login_at is not None
    assert audited(database) == [
        ("user.changed", {"identity": provider.issuer}),
        ("user.signed_in", {"through": provider.issuer}),
    ]
    provider.account.claims = {"sub": "1234", "email": "ann@new-name.example", "email_verified": True}
    browser, back = sign_in(app)
    assert (back.headers["Location"], is_signed_in(browser)) == ("/jobs", True)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "1234"},
        {"sub": "1234", "email": ANN},
        {"sub": "1234", "email": ANN, "email_verified": False},
        {"sub": "1234", "email": ANN, "email_verified": "true"},
        {"sub": "1234", "email": "eve@example.com", "email_verified": True},
    ],
)
def test_who_was_not_let_in_stays_out(
    app: Flask, provider: Provider, database: Database, tenant: Tenant, claims: dict[str, Any]
) -> None:
    invite(database, tenant)
    provider.account.claims = claims
    browser, back = sign_in(app)
    assert back.status_code == 403
    assert "was not let in; ask an administrator" in back.text
    assert not is_signed_in(browser)
    assert audited(database) == []


def test_an_address_is_not_handed_from_one_identity_to_another(
    offer: Settle, provider: Provider, database: Database, tenant: Tenant
) -> None:
    invite(database, tenant, oidc_issuer=provider.issuer, oidc_subject="somebody else")
    for app in (offer(), offer(oidc_tenant="acme")):
        browser, back = sign_in(app)
        assert (back.status_code, is_signed_in(browser)) == (403, False)


def test_with_a_tenant_anybody_whom_the_provider_vouches_for_becomes_a_member(
    offer: Settle, provider: Provider, database: Database, tenant: Tenant
) -> None:
    app = offer(oidc_tenant="acme")
    browser, back = sign_in(app)
    assert (back.status_code, is_signed_in(browser)) == (303, True)
    with database.transaction() as session:
        (user,) = session.scalars(select(User))
    assert (user.email, user.role, user.tenant_id, user.password_hash) == (ANN, "member", tenant.id, None)
    assert ("user.created", {"email": ANN, "role": "member", "identity": provider.issuer}) in audited(database)
    sign_in(app)
    provider.account.claims = {"sub": "5678", "email": "bob@example.com"}
    assert sign_in(app)[1].status_code == 403
    with database.transaction() as session:
        assert len(session.scalars(select(User)).all()) == 1


def test_a_tenant_that_is_not_there_lets_nobody_in(offer: Settle, database: Database, tenant: Tenant) -> None:
    _, back = sign_in(offer(oidc_tenant="absent"))
    assert back.status_code == 503
    assert "there is no tenant &#39;absent&#39;" in back.text


def test_who_was_shut_out_stays_out_and_an_open_session_ends(app: Flask, database: Database, tenant: Tenant) -> None:
    user_id = invite(database, tenant)
    browser, _ = sign_in(app)
    with database.transaction() as session:
        session.execute(update(User).where(User.id == user_id).values(disabled_at=tenant.created_at))
    assert not is_signed_in(browser)
    _, back = sign_in(app)
    assert (back.status_code, "shut out" in back.text) == (403, True)


def test_no_password_opens_an_account_without_one(app: Flask, database: Database, tenant: Tenant) -> None:
    invite(database, tenant)
    app.config["WTF_CSRF_METHODS"] = set()
    for password in ("", "None", "x"):
        answer = app.test_client().post("/sign-in", data={"email": ANN, "password": password})
        assert answer.status_code == 401


LIES: dict[str, dict[str, Any]] = {
    "another issuer": {"lies": {"iss": "https://elsewhere.example"}},
    "another audience": {"lies": {"aud": "another-client"}},
    "another audience, by leave of ours": {"lies": {"aud": "another-client", "azp": CLIENT_ID}},
    "no audience": {"lies": {"aud": None}},
    "another nonce": {"lies": {"nonce": "guessed"}},
    "no nonce": {"lies": {"nonce": None}},
    "expired": {"lies": {"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200}},
    "no end": {"lies": {"exp": None}},
    "no subject": {"lies": {"sub": None}},
    "another key under the name of the right one": {"key": "forged"},
    "an unknown key": {"key": "unknown"},
    "no signature": {"algorithm": "none"},
    "refused by the person": {"error": "access_denied"},
}


@pytest.mark.parametrize("how", list(LIES))
def test_what_cannot_be_believed_signs_nobody_in(
    app: Flask, provider: Provider, database: Database, tenant: Tenant, how: str
) -> None:
    invite(database, tenant)
    for name, value in LIES[how].items():
        setattr(provider.account, name, value)
    if how.startswith("another key"):
        forged = signing_key("forged").as_dict(private=True)
        provider.account.key = type(signing_key()).import_key(forged | {"kid": signing_key().kid})
    elif how == "an unknown key":
        provider.account.key = signing_key("unknown")
    browser, back = sign_in(app)
    assert back.status_code == 401, back.text
    assert "begin again" in back.text
    assert not is_signed_in(browser)
    assert audited(database) == []


def test_a_key_that_the_provider_has_changed_to_is_fetched(
    app: Flask, provider: Provider, database: Database, tenant: Tenant
) -> None:
    invite(database, tenant)
    assert sign_in(app)[1].status_code == 303
    provider.published = [signing_key("next")]
    assert sign_in(app)[1].status_code == 303


def test_a_sign_in_is_finished_by_the_browser_that_began_it_and_once(
    app: Flask, database: Database, tenant: Tenant
) -> None:
    invite(database, tenant)
    victim, attacker = app.test_client(), app.test_client()
    landing = begin(attacker)
    for browser, address in ((victim, landing), (victim, "/sign-in/oidc/callback"), (victim, f"{landing}x")):
        back = browser.get(address)
        assert (back.status_code, "begin again" in back.text) == (401, True)
    assert not is_signed_in(victim)
    assert attacker.get(landing).status_code == 303
    attacker.post("/sign-out")
    assert attacker.get(landing).status_code == 401


def test_the_way_on_leads_nowhere_else(app: Flask, database: Database, tenant: Tenant) -> None:
    invite(database, tenant)
    for wanted in ("https://evil.example/", "//evil.example", "/\\evil.example"):
        _, back = sign_in(app, f"?next={wanted}")
        assert back.headers["Location"] == "/jobs"


def test_a_provider_that_is_away_or_another_than_was_configured_is_an_outage(
    app: Flask, provider: Provider, offer: Settle
) -> None:
    provider.metadata = {"issuer": "https://elsewhere.example"}
    impostor = app.test_client().get("/sign-in/oidc")
    assert (impostor.status_code, "identity provider does not answer" in impostor.text) == (503, True)
    provider.metadata = {}
    assert app.test_client().get("/sign-in/oidc").status_code == 302
    away = offer(oidc_issuer="http://127.0.0.1:9")
    assert away.test_client().get("/sign-in/oidc").status_code == 503


def test_the_provider_is_told_the_public_address(offer: Settle) -> None:
    app = offer(public_url="https://penstock.example/")
    there = urlsplit(app.test_client().get("/sign-in/oidc").headers["Location"])
    assert parse_qs(there.query)["redirect_uri"] == ["https://penstock.example/sign-in/oidc/callback"]


@pytest.mark.parametrize("missing", ["oidc_client_id", "oidc_client_secret"])
def test_half_a_configuration_stops_the_start(offer: Settle, missing: str) -> None:
    with pytest.raises(SettingsError, match=f"PENSTOCK_{missing.upper()}: must be set"):
        offer(**{missing: None})


@pytest.mark.parametrize("issuer", ["http://id.example", "ftp://x", "id.example", "http://127.0.0.1.example"])
def test_a_provider_must_be_reached_over_https(issuer: str) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_OIDC_ISSUER"):
        Settings.from_environment(
            database_url=SecretStr("postgresql://x/y"), redis_url=SecretStr("redis://x"), oidc_issuer=issuer
        )
