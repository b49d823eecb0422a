"""Signing in and out: who gets in, where to, how long, and how guessing is slowed down."""

import re
from collections.abc import Callable
from typing import cast

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.auth.models import AuditEntry, User
from penstock.auth.services import check_password
from penstock.db import Database
from penstock.errors import QuotaExceeded, SettingsError
from penstock.portal.sessions import safe_destination
from penstock.portal.throttle import MOST_FAILURES, WINDOW_SECONDS, SignInThrottle
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import func, select, update
from sqlalchemy.pool import QueuePool

from tests.platform.portal.conftest import PASSWORD, Person

MakePerson = Callable[..., Person]


def test_a_sign_in_is_written_down(make_person: MakePerson, database: Database) -> None:
    person = make_person(signed_in=False)
    person.sign_in("wrong")
    person.sign_in()
    with database.transaction() as session:
        (entry,) = session.scalars(select(AuditEntry))
    assert (entry.action, entry.actor_name, entry.address) == ("user.signed_in", person.email, "127.0.0.1")
    assert entry.tenant_id == person.tenant_id


def test_a_password_is_checked_while_no_connection_is_held(
    make_person: MakePerson, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = make_person(signed_in=False)
    held = []

    def watch(kept: str | None, password: str) -> str | None:
        held.append(cast(QueuePool, database.engine.pool).checkedout())
        return check_password(kept, password)

    monkeypatch.setattr("penstock.portal.account_views.check_password", watch)
    assert person.sign_in().status_code == 303
    assert held == [0]


def test_who_is_shut_out_is_signed_out_and_does_not_get_in(person: Person, database: Database) -> None:
    assert person.get("/jobs").status_code == 200
    with database.transaction() as session:
        session.execute(update(User).values(disabled_at=func.now()))
    assert person.get("/jobs").status_code == 302
    assert person.sign_in().status_code == 401
    with database.transaction() as session:
        session.execute(update(User).values(disabled_at=None))
    assert person.sign_in().status_code == 303


def test_pages_ask_strangers_to_sign_in_and_bring_them_back(make_person: MakePerson) -> None:
    person = make_person(signed_in=False)
    turned_away = person.get("/jobs?status=failed&tag=a%20b")
    assert turned_away.status_code == 302
    signed_in = person.sign_in(to=turned_away.headers["Location"])
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/jobs?status=failed&tag=a%20b")
    assert person.get("/jobs").status_code == 200


def test_a_wrong_password_and_an_unknown_account_are_answered_alike(make_person: MakePerson) -> None:
    person = make_person(signed_in=False)
    wrong, unknown = person.sign_in("not it"), person.sign_in("not it", email="nobody@example.com")
    assert wrong.status_code == unknown.status_code == 401
    assert "do not belong together" in wrong.text
    apart_from_values = [re.sub(r'value="[^"]*"', "", answer.text) for answer in (wrong, unknown)]
    assert apart_from_values[0] == apart_from_values[1]
    assert person.get("/jobs").status_code == 302


def test_the_session_cookie_is_for_this_site_and_not_for_scripts(make_person: MakePerson) -> None:
    cookie = make_person(signed_in=False).sign_in().headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie


def test_the_session_cookie_is_secure_where_the_settings_say_so(
    settings: Settings, database: Database, redis: Redis
) -> None:
    secure = settings.model_copy(update={"secure_cookies": True})
    app = create_app(secure, database=database, redis=redis)
    assert app.config["SESSION_COOKIE_SECURE"] is True


def test_without_a_secret_key_the_application_refuses_to_start(
    settings: Settings, database: Database, redis: Redis
) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_SECRET_KEY"):
        create_app(settings.model_copy(update={"secret_key": SecretStr("")}), database=database, redis=redis)


def test_signing_out_ends_the_session(person: Person) -> None:
    assert person.post("/sign-out").headers["Location"] == "/sign-in"
    assert person.get("/jobs").status_code == 302


def test_a_new_password_ends_every_session(person: Person, database: Database) -> None:
    with database.transaction() as session:
        session.query(User).filter_by(email=person.email).update({"password_hash": "another"})
    assert person.get("/jobs").status_code == 302


def test_a_removed_account_has_no_session(person: Person, database: Database) -> None:
    with database.transaction() as session:
        session.query(User).filter_by(email=person.email).delete()
    assert person.get("/jobs").status_code == 302


def test_a_part_of_a_page_sends_the_whole_page_to_sign_in(app: Flask) -> None:
    answer = app.test_client().get("/jobs/rows", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/sign-in")


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/\n/evil.example", ""],
)
def test_signing_in_sends_nobody_elsewhere(elsewhere: str) -> None:
    assert safe_destination(elsewhere) is None


def test_too_many_wrong_passwords_close_the_door_for_a_while(make_person: MakePerson, redis: Redis) -> None:
    person = make_person(signed_in=False)
    for _ in range(MOST_FAILURES):
        assert person.sign_in("not it").status_code == 401
    closed = person.sign_in(PASSWORD)
    assert closed.status_code == 429
    assert "Too many attempts. Try again in 15 minutes." in closed.text
    (key,) = redis.keys("penstock:sign-in:*")
    assert 0 < redis.ttl(key) <= WINDOW_SECONDS
    redis.delete(key)  # the window has passed
    assert person.sign_in(PASSWORD).status_code == 303


def test_failures_count_for_one_account_from_one_address_alone(redis: Redis) -> None:
    throttle = SignInThrottle(redis)
    for _ in range(MOST_FAILURES):
        throttle.failed("Ada@example.com ", "192.0.2.1")
    with pytest.raises(QuotaExceeded):
        throttle.check("ada@example.com", "192.0.2.1")
    throttle.check("ada@example.com", "192.0.2.2")
    throttle.check("bob@example.com", "192.0.2.1")


def test_a_right_password_forgets_the_wrong_ones(make_person: MakePerson, redis: Redis) -> None:
    person = make_person(signed_in=False)
    person.sign_in("not it")
    assert redis.keys("penstock:sign-in:*")
    person.sign_in()
    assert not redis.keys("penstock:sign-in:*")


def test_nobody_is_locked_out_while_redis_is_down(settings: Settings, make_person: MakePerson, app: Flask) -> None:
    from penstock.broker import make_redis

    unreachable = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    app.extensions["penstock.sign_in_throttle"] = SignInThrottle(make_redis(unreachable, retries=0))
    person = make_person(signed_in=False)
    assert person.sign_in("not it").status_code == 401
    assert person.sign_in().status_code == 303
