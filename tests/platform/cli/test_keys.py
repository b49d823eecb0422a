"""`penstock keys` and `migrate`, on a real database."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from penstock.auth.services import authenticate
from penstock.db import Database
from penstock.errors import Unauthenticated
from penstock.migrate import upgrade
from penstock.settings import Settings
from pydantic import SecretStr
from sqlalchemy import text

from tests.factories import make_tenant
from tests.platform.cli.conftest import Call


@pytest.fixture
def server_call(call: Call, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls `penstock` with the test services' settings in the environment."""
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", settings.database_url.get_secret_value().replace("+psycopg", ""))
    monkeypatch.setenv("PENSTOCK_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("PENSTOCK_ENVIRONMENT", "test")
    with database.transaction() as session:
        make_tenant(session, "default")
    return call


def test_a_key_is_printed_once_and_works_until_it_is_revoked(server_call: Call, database: Database) -> None:
    made = server_call("keys", "create", "--name", "ci", "--scope", "jobs:read", "--expires", "90d")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    with database.transaction() as session:
        principal = authenticate(session, secret, environment="test")
    assert principal.scopes == {"jobs:read"}
    listed = server_call("keys", "list").stdout
    assert secret not in listed
    key_id, name, hint, scopes, models, standing = listed.strip().split("\t")
    assert (key_id, name, scopes, models) == (principal.key_id, "ci", "jobs:read", "all")
    assert hint.endswith(secret[-4:])
    assert standing.startswith("expires ")
    assert server_call("keys", "revoke", key_id).stdout == f"{key_id} (ci) is revoked\n"
    assert "revoked" in server_call("keys", "list").stdout
    with database.transaction() as session, pytest.raises(Unauthenticated, match="revoked"):
        authenticate(session, secret, environment="test")


def test_keys_of_other_tenants_are_out_of_reach(server_call: Call, database: Database) -> None:
    with database.transaction() as session:
        make_tenant(session, "other")
    server_call("keys", "create", "--name", "theirs", "--tenant", "other")
    assert server_call("keys", "list").stdout == ""
    key_id = server_call("keys", "list", "--tenant", "other").stdout.split("\t")[0]
    refused = server_call("keys", "revoke", key_id)
    assert refused.exit_code == 1
    assert "no API key" in refused.stderr


def test_an_unknown_tenant_is_answered_with_those_that_there_are(server_call: Call) -> None:
    result = server_call("keys", "list", "--tenant", "nobody")
    assert result.exit_code == 1
    assert result.stderr == "Error: no tenant 'nobody'; there is default\n"


@pytest.mark.parametrize("expires", ["2001-01-01T00:00:00Z", "0s"])
def test_a_key_cannot_have_expired_already(server_call: Call, expires: str) -> None:
    result = server_call("keys", "create", "--name", "x", "--expires", expires)
    assert result.exit_code == 2
    assert "must lie in the future" in result.stderr


def test_migrate_says_where_the_database_is(server_call: Call) -> None:
    result = server_call("migrate")
    assert result.exit_code == 0
    assert re.fullmatch(r"the database is at revision \w+\n", result.stdout)


@pytest.mark.parametrize("command", [["migrate"], ["keys", "list"]])
def test_a_database_that_does_not_answer_is_one_line(
    server_call: Call, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://u:secret@127.0.0.1:9/x")
    result = server_call(*command)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: PENSTOCK_DATABASE_URL: PostgreSQL does not answer")
    assert "secret" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_database_without_tables_says_what_to_run(
    server_call: Call, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = settings.database_url.get_secret_value().replace("+psycopg", "").rsplit("/", 1)[0] + "/postgres"
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", url)
    result = server_call("keys", "list")
    assert result.exit_code == 1
    assert "run `penstock migrate` first" in result.stderr
    assert result.stderr.count("\n") == 1


def test_starters_that_migrate_at_once_wait_for_each_other(settings: Settings, database: Database) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS several_starters"))
        connection.execute(text("CREATE DATABASE several_starters"))
    url = settings.database_url.get_secret_value().rsplit("/", 1)[0] + "/several_starters"
    fresh = settings.model_copy(update={"database_url": SecretStr(url)})
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: upgrade(fresh), range(4)))
    first, *others = sorted(results, key=lambda result: result[0] or "")
    assert first[0] is None
    assert first[1] is not None
    assert others == [(first[1], first[1])] * 3
