"""`penstock users`, `tenants` and `audit`, on a real database."""

import getpass
import json
import socket

import pytest
from penstock.auth.services import authenticate
from penstock.db import Database

from tests.platform.auth.signing_in import signs_in
from tests.platform.cli.conftest import Call
from tests.platform.cli.test_keys import server_call

__all__ = ["server_call"]


def test_a_person_is_let_in_changed_and_removed(server_call: Call, database: Database) -> None:
    made = server_call("users", "create", "Ann@Example.com", "--role", "admin")
    assert made.exit_code == 0, made.output
    password = made.stdout.strip()
    assert signs_in(database, "ann@example.com", password)
    given = server_call(
        "users", "create", "bob@example.com", "--role=admin", "--password-stdin", stdin="a long secret\n"
    )
    assert (given.exit_code, given.stdout) == (0, "")
    assert signs_in(database, "bob@example.com", "a long secret")
    changed = server_call("users", "change", "ANN@example.com", "--role", "member", "--disable")
    assert changed.stdout.startswith("ann@example.com\tmember\tshut out ")
    listed = [line.split("\t")[1:3] for line in server_call("users", "list").stdout.splitlines()]
    assert listed == [["ann@example.com", "member"], ["bob@example.com", "admin"]]
    last = server_call("users", "remove", "bob@example.com")
    assert (last.exit_code, "nobody would be left" in last.stderr) == (1, True)
    assert server_call("users", "remove", "ann@example.com").stdout == "ann@example.com is removed\n"
    assert "nobody signs in as" in server_call("users", "remove", "ann@example.com").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["users", "create", "nonsense"], "email: is not acceptable"),
        (["users", "create", "a@b.c", "--password-stdin"], "password: is too short"),
        (["users", "change", "a@b.c"], "give at least one of --role"),
        (["tenants", "set", "default", "colour=red"], "colour: is not a known field"),
        (["tenants", "set", "default", "max_queued_jobs=0"], "max_queued_jobs: is too small"),
        (["tenants", "set", "default", "max_queued_jobs"], "must read name=value"),
        (["tenants", "set", "absent", "weight=2"], "no tenant 'absent'; there is default"),
        (["tenants", "create", "default"], "a tenant named 'default' already"),
        (["keys", "create", "--name", "x", "--model", "tiny:1"], "models.0: is not acceptable"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(server_call: Call, arguments: list[str], says: str) -> None:
    result = server_call(*arguments, stdin="short\n")
    assert result.exit_code != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_tenant_is_made_and_limited(server_call: Call) -> None:
    tenant_id = server_call("tenants", "create", "acme").stdout.strip()
    changed = server_call("tenants", "set", "acme", "max_queued_jobs=5", "weight=2.5", "name=Acme & Co")
    assert changed.stdout == f"{tenant_id}\tAcme & Co\t2.5\t5\t-\t-\t-\tactive\n"
    server_call("tenants", "set", tenant_id, "max_queued_jobs=-", "tokens_per_minute=1000", "max_open_streams=2")
    listed = server_call("tenants", "list").stdout.splitlines()
    assert listed[0] == f"{tenant_id}\tAcme & Co\t2.5\t-\t-\t1000\t2\tactive"


def test_a_tenant_is_suspended_resumed_and_erased(server_call: Call) -> None:
    def standing(name: str) -> str:
        listed = [line.split("\t") for line in server_call("tenants", "list").stdout.splitlines()]
        return next(cells[-1] for cells in listed if cells[1] == name)

    tenant_id = server_call("tenants", "create", "acme").stdout.strip()
    assert "suspend it first" in server_call("tenants", "erase", "acme", "--yes").stderr
    assert server_call("tenants", "suspend", "acme").stdout == "acme is suspended\n"
    assert standing("acme") == "suspended"
    assert server_call("tenants", "resume", tenant_id).stdout == "acme is resumed\n"
    assert (standing("acme"), standing("default")) == ("active", "active")
    server_call("tenants", "suspend", "acme")
    refused = server_call("tenants", "erase", "acme", stdin="n\n")
    assert (refused.exit_code, standing("acme")) == (1, "suspended")
    assert server_call("tenants", "erase", "acme", "--yes").stdout.startswith(f"{tenant_id} is being erased")
    assert standing("acme") == "being erased"
    assert "is being erased since" in server_call("tenants", "resume", "acme").stderr


def test_the_record_shows_who_did_what(server_call: Call) -> None:
    server_call("users", "create", "ann@example.com")
    key = server_call("keys", "create", "--name", "ci", "--model", "tiny").stdout.strip()
    shown = server_call("audit", "--tenant", "default").stdout
    assert key not in shown
    newest, first = [line.split("\t") for line in shown.splitlines()]
    assert newest[1:4] == [f"command {getpass.getuser()} on the command line", socket.gethostname(), "key.created"]
    assert json.loads(newest[5])["models"] == ["tiny"]
    assert (first[3], json.loads(first[5])) == ("user.created", {"email": "ann@example.com", "role": "member"})
    assert server_call("audit", "--action", "user.created").stdout.count("\n") == 1


def test_a_key_for_some_models_is_listed_so(server_call: Call, database: Database) -> None:
    secret = server_call("keys", "create", "--name", "x", "--model", "b", "--model", "a", "--scope", "operator").stdout
    with database.transaction() as session:
        principal = authenticate(session, secret.strip(), environment="test")
    assert principal.models == {"a", "b"}
    assert server_call("keys", "list").stdout.split("\t")[3:5] == ["operator", "a b"]
