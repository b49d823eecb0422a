"""Keys, people, tenants and the record, over HTTP."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.auth.documents import (
    AuditEntryDocument,
    KeyDocument,
    NewKeyDocument,
    NewUserDocument,
    TenantDocument,
    UserDocument,
)
from penstock.auth.services import Scope
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.lease import Finish
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.rollouts.operating import MOVES
from penstock.settings import Settings
from redis import Redis
from werkzeug.routing import Rule

from tests.factories import WordCounter, make_deployment, make_worker
from tests.platform.api.conftest import BODY, Caller, Worker

TENANT_ADMIN = (Scope.ADMIN,)


@pytest.fixture
def admin(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller(TENANT_ADMIN)


def with_key(caller: Caller, key: str) -> Caller:
    return Caller(caller.client, caller.tenant_id, key)


def test_a_key_is_made_with_its_secret_once_and_works_until_it_is_revoked(admin: Caller) -> None:
    made = admin.post("/v1/keys", {"name": " ci ", "expires_at": "2090-01-01T00:00:00+01:00"})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    document = NewKeyDocument.model_validate(made.json)
    assert (document.name, document.scopes, document.models) == ("ci", ["jobs:read", "jobs:write"], None)
    assert made.json["expires_at"] == "2089-12-31T23:00:00.000Z"
    program = with_key(admin, document.key)
    assert program.get("/v1/jobs").status_code == 200
    assert program.get("/v1/keys").json["code"] == "forbidden"

    got = admin.get(made.headers["Location"])
    KeyDocument.model_validate(got.json)
    assert document.key not in got.text + admin.get("/v1/keys").text
    assert admin.get("/v1/keys").json["data"][0]["id"] == document.id
    first = admin.call("DELETE", f"/v1/keys/{document.id}")
    again = admin.call("DELETE", f"/v1/keys/{document.id}")
    assert first.json["revoked_at"] is not None
    assert again.json == first.json


def test_a_key_cannot_make_a_mightier_one(admin: Caller) -> None:
    answer = admin.post("/v1/keys", {"name": "x", "scopes": ["operator"]})

    assert (answer.status_code, answer.json["code"], answer.json["field"]) == (403, "forbidden", "scopes")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/keys", {}, "name"),
        ("/v1/keys", {"name": " "}, "name"),
        ("/v1/keys", {"name": "a\nb"}, "name"),
        ("/v1/keys", {"name": "x", "scopes": []}, "scopes"),
        ("/v1/keys", {"name": "x", "scopes": ["everything"]}, "scopes.0"),
        ("/v1/keys", {"name": "x", "models": []}, "models"),
        ("/v1/keys", {"name": "x", "models": ["tiny:1"]}, "models.0"),
        ("/v1/keys", {"name": "x", "expires_at": "2090-01-01T00:00:00"}, "expires_at"),
        ("/v1/keys", {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ("/v1/keys", {"name": "x", "expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ("/v1/users", {"email": "nobody"}, "email"),
        ("/v1/users", {"email": "a@b@c"}, "email"),
        ("/v1/users", {"email": "a@b.c", "role": "king"}, "role"),
        ("/v1/users", {"email": "a@b.c", "password": "short"}, "password"),
        ("/v1/users", {"email": "a@b.c", "colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(admin: Caller, path: str, body: dict[str, Any], field: str) -> None:
    answer = admin.post(path, body)

    assert (answer.status_code, answer.json["code"], answer.json["field"]) == (422, "validation_failed", field)


def test_a_person_is_let_in_changed_and_removed(admin: Caller) -> None:
    made = admin.post("/v1/users", {"email": "Ann@Example.com", "role": "admin"})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    user = NewUserDocument.model_validate(made.json)
    assert user.password is not None
    assert (user.email, user.role, user.disabled) == ("ann@example.com", "admin", False)
    path = made.headers["Location"]
    assert admin.call("PATCH", path, {"role": "member"}).json["code"] == "last_administrator"
    given = admin.post("/v1/users", {"email": "bob@example.com", "role": "admin", "password": "x" * 12}).json
    assert given["password"] is None
    changed = admin.call("PATCH", path, {"role": "member", "disabled": True})
    assert (changed.json["role"], changed.json["disabled"]) == ("member", True)
    UserDocument.model_validate(admin.get(path).json)
    assert admin.call("PATCH", path, {}).status_code == 422
    assert [person["email"] for person in admin.get("/v1/users").json["data"]] == ["ann@example.com", "bob@example.com"]
    assert admin.post("/v1/users", {"email": "ann@example.com"}).json["code"] == "already_exists"
    assert admin.call("DELETE", path).status_code == 204
    assert admin.get(path).status_code == 404


def test_the_record_says_who_did_what_and_from_where(admin: Caller, caller: Caller) -> None:
    key_id = admin.post("/v1/keys", {"name": "ci"}).json["id"]
    user_id = admin.post("/v1/users", {"email": "ann@example.com", "password": "a secret word"}).json["id"]
    page = admin.get("/v1/audit?limit=1").json
    rest = admin.get(f"/v1/audit?after={page['next']}").json
    assert (page["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
    entries = [AuditEntryDocument.model_validate(entry) for entry in (*page["data"], *rest["data"])]
    assert [(entry.action, entry.target) for entry in entries] == [("user.created", user_id), ("key.created", key_id)]
    assert {(entry.actor.kind, entry.actor.name, entry.address) for entry in entries} == {
        ("api_key", "test", "127.0.0.1")
    }
    assert admin.get("/v1/audit?action=key.created").json["data"] == rest["data"]
    assert admin.get(f"/v1/audit?target={user_id}").json["data"] == page["data"]
    assert admin.get("/v1/audit?actor=key_other").json["data"] == []
    assert admin.get("/v1/audit?action=nonsense").status_code == 422
    assert "a secret word" not in admin.get("/v1/audit").text
    assert caller.get("/v1/audit").json["data"] == []
    everything = caller.get(f"/v1/admin/audit?tenant={admin.tenant_id}").json
    assert everything["data"] == [*page["data"], *rest["data"]]
    assert caller.get(f"/v1/admin/audit?tenant={caller.tenant_id}").json["data"] == []


def test_operators_make_tenants_and_their_first_keys(caller: Caller) -> None:
    made = caller.post("/v1/admin/tenants", {"name": "acme", "weight": 2.0})
    assert made.status_code == 201
    tenant = TenantDocument.model_validate(made.json)
    first = caller.post(f"/v1/admin/tenants/{tenant.id}/keys", {"name": "first", "scopes": ["admin"]})
    theirs = Caller(caller.client, tenant.id, first.json["key"])
    assert [key["id"] for key in theirs.get("/v1/keys").json["data"]] == [first.json["id"]]
    assert theirs.get(first.headers["Location"]).status_code == 200
    assert [entry["action"] for entry in theirs.get("/v1/audit").json["data"]] == ["key.created", "tenant.created"]
    changed = caller.call("PATCH", made.headers["Location"], {"max_queued_jobs": 3})
    assert (changed.json["max_queued_jobs"], changed.json["weight"]) == (3, 2.0)
    assert caller.call("PATCH", made.headers["Location"], {"max_queued_jobs": None}).json["max_queued_jobs"] is None
    assert caller.get(made.headers["Location"]).json["name"] == "acme"
    assert "acme" in [found["name"] for found in caller.get("/v1/admin/tenants").json["data"]]
    assert caller.post("/v1/admin/tenants", {"name": "acme"}).json["code"] == "already_exists"
    assert caller.post("/v1/admin/tenants/ten_absent/keys", {"name": "x"}).status_code == 404


@pytest.mark.parametrize("body", [{}, {"name": None}, {"weight": 0}, {"max_queued_jobs": 0}, {"weight": 1e309}])
def test_a_tenant_is_not_changed_into_nonsense(caller: Caller, body: dict[str, Any]) -> None:
    assert caller.call("PATCH", f"/v1/admin/tenants/{caller.tenant_id}", body).status_code in (400, 422)


def admin_routes(app: Flask) -> list[tuple[str, Rule]]:
    return [
        (method, rule)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        if rule.rule.startswith(("/v1/keys", "/v1/users", "/v1/audit", "/v1/admin/"))
    ]


@pytest.mark.parametrize("scopes", [(Scope.JOBS_READ, Scope.JOBS_WRITE), TENANT_ADMIN])
def test_scopes_stand_before_administration(
    app: Flask, make_caller: Callable[..., Caller], scopes: tuple[Scope, ...]
) -> None:
    caller = make_caller(scopes)
    walked = set()
    for method, rule in admin_routes(app):
        if scopes == TENANT_ADMIN and not rule.rule.startswith("/v1/admin/"):
            continue
        path = rule.build(dict.fromkeys(rule.arguments, "absent"))
        assert path is not None
        answer = caller.call(method, path[1], {})
        assert (answer.status_code, answer.json["code"]) == (403, "forbidden"), (method, rule.rule)
        walked.add(rule.rule)
    assert len(walked) >= 4


def bury(caller: Caller, worker: Worker) -> str:
    """Give a job up, as one that breaks what runs it; the dead letter's id."""
    caller.submit()
    error = {"code": "internal_error", "message": "it broke"}
    held = worker.claim()
    with worker.database.transaction() as session:
        lease.finish(session, held, Finish(JobState.FAILED, [], prompt_tokens=2, error=error))
    return str(caller.get("/v1/admin/dead-letters?status=open").json["data"][0]["id"])


def roll_out(caller: Caller, database: Database, number: int, *, paused: bool) -> str:
    """A rollout of a model of its own, of a version that a worker has ready."""
    with database.transaction() as session:
        name = f"model {number}"
        make_deployment(session, name)
        make_worker(session, make_deployment(session, name, "2", champion=False))
    rollout_id = str(caller.post("/v1/admin/rollouts", {"model": name, "version": "2"}).json["id"])
    if paused:
        caller.post(f"/v1/admin/rollouts/{rollout_id}/pause", {"reason": "x"})
    return rollout_id


CHANGES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/keys"): {"name": "x"},
    ("DELETE", "/v1/keys/<key_id>"): None,
    ("POST", "/v1/users"): {"email": "new@example.com"},
    ("PATCH", "/v1/users/<user_id>"): {"role": "admin"},
    ("DELETE", "/v1/users/<user_id>"): None,
    ("POST", "/v1/admin/tenants"): {"name": "new"},
    ("PATCH", "/v1/admin/tenants/<tenant_id>"): {"weight": 3.0},
    ("POST", "/v1/admin/tenants/<tenant_id>/keys"): {"name": "x"},
    ("POST", "/v1/admin/tenants/<tenant_id>/suspend"): None,
    ("POST", "/v1/admin/tenants/<tenant_id>/resume"): None,
    ("DELETE", "/v1/admin/tenants/<tenant_id>"): None,
    ("POST", "/v1/admin/prices"): {"model": "tiny", "currency": "EUR", "input": "1", "cached": "0", "output": "2"},
    ("PUT", "/v1/admin/tenants/<tenant_id>/budgets"): {"currency": "EUR", "amount": "5"},
    ("POST", "/v1/admin/dead-letters/<letter_id>/replay"): None,
    ("POST", "/v1/admin/dead-letters/<letter_id>/discard"): None,
    ("POST", "/v1/admin/dead-letters/bulk"): {"action": "discard", "filter": {}},
    ("POST", "/v1/admin/workers/<worker_id>/drain"): None,
    ("POST", "/v1/admin/replays"): {"model": "tiny"},
    ("POST", "/v1/admin/replays/<replay_id>/cancel"): None,
    ("PUT", "/v1/admin/deployments/<deployment_id>"): {"mode": "warm"},
    ("POST", "/v1/admin/rollouts"): {"model": "tiny", "version": "2"},
    ("PUT", "/v1/admin/models/<name>/policy"): {"policy": {"keep_warm": "1d"}},
    **{("POST", f"/v1/admin/rollouts/<rollout_id>/{move}"): {"reason": "x"} for move in MOVES},
}
"""Every call that changes something, with a body that does."""
REHEARSALS = {("POST", "/v1/admin/rollouts/simulate")}
OF_SUSPENDED = {("POST", "/v1/admin/tenants/<tenant_id>/resume"), ("DELETE", "/v1/admin/tenants/<tenant_id>")}


class Subjects:
    """What the calls change: for each argument of a path, something that is there and, where need be, nobody else's."""

    def __init__(self, caller: Caller, worker: Worker) -> None:
        self._caller = caller
        self._worker = worker
        self._letters = iter([bury(caller, worker) for _ in range(2)])
        with worker.database.transaction() as session:
            make_deployment(session, version="2", champion=False)
        self._replay_id = self._made("/v1/admin/replays", {"model": "tiny"})
        self._numbers = count()

    def path_of(self, method: str, rule: Rule) -> str:
        built = rule.build({name: self._subject(name, (method, rule.rule)) for name in rule.arguments})
        assert built is not None
        return built[1]

    def _subject(self, argument: str, route: tuple[str, str]) -> str:
        number = next(self._numbers)
        match argument:
            case "key_id":
                return self._made("/v1/keys", {"name": "subject"})
            case "user_id":
                return self._made("/v1/users", {"email": f"{number}@example.com"})
            case "tenant_id":
                return self._tenant(number, suspended=route in OF_SUSPENDED)
            case "rollout_id":
                return roll_out(self._caller, self._worker.database, number, paused=route[1].endswith("/resume"))
            case "letter_id":
                return next(self._letters)
        there = {"worker_id": self._worker.id, "deployment_id": self._worker.deployment_id, "name": "tiny"}
        return (there | {"replay_id": self._replay_id})[argument]

    def _made(self, path: str, body: dict[str, Any]) -> str:
        return str(self._caller.post(path, body).json["id"])

    def _tenant(self, number: int, *, suspended: bool) -> str:
        tenant_id = self._made("/v1/admin/tenants", {"name": f"tenant {number}"})
        if suspended:
            self._caller.post(f"/v1/admin/tenants/{tenant_id}/suspend")
        return tenant_id


def test_every_change_is_written_down(app: Flask, caller: Caller, worker: Worker) -> None:
    caller.post("/v1/users", {"email": "keep@example.com", "role": "admin"})  # so that no other is the last of them
    changing = [(method, rule) for method, rule in admin_routes(app) if method != "GET"]
    assert {(method, rule.rule) for method, rule in changing} == {*CHANGES, *REHEARSALS}, "tell this test of the route"
    subjects = Subjects(caller, worker)
    for method, rule in changing:
        route = (method, rule.rule)
        if route in REHEARSALS:
            continue
        path = subjects.path_of(method, rule)
        newest = caller.get("/v1/admin/audit?limit=1").json["data"][0]["id"]
        answer = caller.call(method, path, CHANGES[route])
        assert answer.status_code in (200, 201, 202, 204), answer.text
        if rule.rule == "/v1/admin/prices":  # never changed: a price is its own record, and names who set it
            assert answer.json["created_by"].startswith("test (key_")
        else:
            _, before = caller.get("/v1/admin/audit?limit=2").json["data"]
            assert before["id"] == newest, route


def test_a_key_for_some_models_sees_and_uses_these_alone(
    caller: Caller, deployment: Deployment, database: Database
) -> None:
    with database.transaction() as session:
        make_deployment(session, "large")
    admin_for_large = {"name": "x", "models": ["large"], "scopes": ["admin"]}
    limited = with_key(caller, caller.post("/v1/keys", admin_for_large).json["key"])
    for model in ("tiny", "tiny:1", "tiny@champion", "absent"):
        refused = limited.post("/v1/jobs", BODY | {"model": model})
        assert (refused.status_code, refused.json["code"]) == (403, "model_not_allowed")
        assert (refused.json["field"], refused.json["allowed"]) == ("model", ["large"])
    assert limited.post("/v1/jobs", BODY | {"model": "large:1"}).status_code == 202
    assert [model["id"] for model in limited.get("/v1/models").json["data"]] == ["large"]
    assert {model["id"] for model in caller.get("/v1/models").json["data"]} == {"large", "tiny"}
    job_id = caller.submit()
    caller.post(f"/v1/jobs/{job_id}/cancel")
    assert limited.post(f"/v1/jobs/{job_id}/retry").json["code"] == "model_not_allowed"
    assert limited.post("/v1/keys", {"name": "free"}).json["field"] == "models"
    assert limited.post("/v1/keys", {"name": "same", "models": ["large"]}).status_code == 201


@pytest.mark.parametrize(("proxies", "seen"), [(0, "127.0.0.1"), (1, "203.0.113.9"), (2, "198.51.100.7")])
def test_addresses_are_taken_from_trusted_proxies_alone(
    settings: Settings, database: Database, redis: Redis, caller: Caller, proxies: int, seen: str
) -> None:
    behind = create_app(
        settings.model_copy(update={"proxies": proxies}), prompts=WordCounter(), database=database, redis=redis
    )
    program = Caller(behind.test_client(), caller.tenant_id, caller.key)
    program.call("POST", "/v1/keys", {"name": "x"}, X_Forwarded_For="192.0.2.1, 198.51.100.7, 203.0.113.9")
    (entry,) = caller.get("/v1/audit").json["data"]
    assert entry["address"] == seen
    behind.extensions["penstock"].stop_streams()
