"""Tenants never see each other: every route of the application is walked as somebody of another tenant.

A route must be sorted in here, or the test fails. What names something of a tenant must answer a stranger as if it
were not there; what names nothing must not tell the stranger of it either.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask
from penstock.auth.models import User
from penstock.auth.services import Scope
from penstock.db import Database
from penstock.ids import new_id
from penstock.portal.sessions import session_of

from tests.platform.api.conftest import BODY, Caller, Worker
from tests.platform.batches.conftest import form, upload

pytestmark = pytest.mark.usefixtures("deployment")

OPEN = {
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/",
    "/sign-in",
    "/sign-out",
    "/assets/<digest>/<path:name>",
    "/hooks/registry",
}
"""Routes that belong to no tenant."""

MODELS = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models/<model>"}
"""Routes that name nothing of a tenant: the installation's models, and what they say when a worker asks them."""

OPERATORS = "/v1/admin/"
"""Routes of the whole installation, which no tenant's key opens."""

OF_THE_INSTALLATION = {
    "letter_id": "dlt_any",
    "worker_id": "wrk_any",
    "deployment_id": "dep_any",
    "rollout_id": "rol_any",
    "replay_id": "rpl_any",
    "name": "any",
}
"""What those routes name that is no tenant's; whether it is there, no tenant's key learns."""

PORTAL = ("/jobs", "/playground", "/batches", "/files", "/keys", "/webhooks", "/usage")
"""Routes of signed-in people; all others need a key."""

DASHBOARD = "/admin/"
"""Pages of the installation, for people who run it: `tests/platform/portal/test_admin.py` tries each as others."""

THINGS = (
    "/v1/keys",
    "/v1/users",
    "/v1/audit",
    "/v1/budgets",
    "/v1/usage",
    "/v1/jobs",
    "/v1/bulk",
    "/v1/events",
    "/v1/webhook-endpoints",
    "/v1/webhook-deliveries",
    "/v1/files",
    "/v1/batches",
)
"""Where a tenant sees what it has."""

BODIES: Mapping[tuple[str, str], Any] = {
    ("POST", "/v1/jobs"): BODY,
    ("POST", "/v1/jobs/<job_id>/feedback"): {"score": 0.0},
    ("POST", "/v1/bulk"): {"action": "cancel", "filter": {"tag": "mine"}},
    ("POST", "/v1/keys"): {"name": "theirs"},
    ("POST", "/v1/users"): {"email": "theirs@example.com"},
    ("PATCH", "/v1/users/<user_id>"): {"disabled": True},
    ("PUT", "/v1/admin/tenants/<tenant_id>/budgets"): {"amount": "1", "currency": "EUR"},
    ("PATCH", "/v1/batches/<batch_id>"): {"priority": 5},
    ("POST", "/v1/batches/<batch_id>/retry"): {},
    ("POST", "/v1/webhook-endpoints"): {"url": "http://127.0.0.1:9/theirs"},
    ("PATCH", "/v1/webhook-endpoints/<endpoint_id>"): {"disabled": True},
    ("POST", "/v1/webhook-endpoints/<endpoint_id>/rotate-secret"): {},
    ("POST", "/v1/webhook-endpoints/<endpoint_id>/replay"): {"since": "2020-01-01T00:00:00Z", "delivered": True},
}
"""What is sent where a body is needed."""

OWN_TESTS = {("POST", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/calibration"), ("POST", "/files")}
"""What needs a form, a query, or a file of the sender's: `tests/platform/files` tries them as a stranger, and
`tests/platform/compressions`; a page that takes a file in names none."""


@dataclass(frozen=True)
class Belongings:
    """What one tenant has, by the names of path arguments."""

    job_id: str
    key_id: str
    user_id: str
    endpoint_id: str
    delivery_id: str
    response_id: str
    file_id: str
    batch_id: str
    bulk_id: str

    @property
    def ids(self) -> dict[str, str]:
        return dataclasses.asdict(self)

    def hidden_from(self, text: str) -> bool:
        return not any(id_ in text for id_ in (*self.ids.values(), "mine@example.com"))


@dataclass(frozen=True)
class Route:
    """A path with the names of its arguments, and a method."""

    method: str
    rule: str
    arguments: frozenset[str]

    def path(self, ids: Mapping[str, str]) -> str:
        path = self.rule
        for name in self.arguments:
            assert name in ids, f"tell this test how to fill {self.rule}"
            path = path.replace(f"<{name}>", ids[name])
        return path


def routes(app: Flask, which: Callable[[str], bool]) -> list[Route]:
    found = [
        Route(method, rule.rule, frozenset(rule.arguments))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        if which(rule.rule)
    ]
    assert found
    return found


def needs_a_key(rule: str) -> bool:
    return rule not in OPEN | MODELS and not rule.startswith((*PORTAL, OPERATORS, DASHBOARD))


@pytest.fixture
def belongings(caller: Caller) -> Belongings:
    job_id = caller.submit(tags=["mine"])
    user_id = caller.post("/v1/users", {"email": "mine@example.com"}).json["id"]
    endpoint_id = caller.post("/v1/webhook-endpoints", {"url": "http://127.0.0.1:9/mine"}).json["id"]
    delivery_id = caller.post(f"/v1/webhook-endpoints/{endpoint_id}/test").json["id"]
    key_id = caller.post("/v1/keys", {"name": "mine"}).json["id"]
    response_id = caller.post("/v1/responses", {"model": "tiny", "input": "mine", "background": True}).json["id"]
    file_id = upload(caller, form({"purpose": "batch"}, b"mine")).json["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/jobs", "completion_window": "24h"}
    batch_id = caller.post("/v1/batches", body).json["id"]
    bulk_id = caller.post("/v1/bulk", {"action": "cancel", "filter": {"tag": "mine"}}).json["id"]
    return Belongings(job_id, key_id, user_id, endpoint_id, delivery_id, response_id, file_id, batch_id, bulk_id)


@pytest.fixture
def stranger(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller((Scope.ADMIN,))


def what_there_is(caller: Caller, belongings: Belongings) -> list[Any]:
    """The owner's view of all that a stranger might have changed."""
    seen = [caller.get(path).json for path in THINGS]
    for key in seen[0]["data"]:
        key.pop("last_used_at")  # the owner's own looking may note it
    return [*seen, caller.get(f"/v1/jobs/{belongings.job_id}").json]


def test_every_route_is_sorted(app: Flask) -> None:
    rules = {rule.rule for rule in app.url_map.iter_rules()}

    assert rules >= OPEN
    for rule in rules - OPEN:
        assert rule.startswith(("/v1/", *PORTAL, DASHBOARD)), f"{rule}: say in this test who may see it"


def test_every_route_of_the_api_needs_a_key(app: Flask, caller: Caller, belongings: Belongings) -> None:
    for route in routes(app, lambda rule: rule not in OPEN and not rule.startswith((*PORTAL, DASHBOARD))):
        ids = belongings.ids | {"tenant_id": caller.tenant_id, "model": "tiny"} | OF_THE_INSTALLATION
        answer = caller.client.open(route.path(ids), method=route.method, json=BODIES.get((route.method, route.rule)))
        said = answer.json.get("error", answer.json)
        assert (answer.status_code, said["code"]) in ((401, "unauthenticated"), (401, "invalid_api_key")), route


def test_what_is_another_tenants_is_not_there(
    app: Flask, caller: Caller, stranger: Caller, belongings: Belongings
) -> None:
    before = what_there_is(caller, belongings)
    for route in routes(app, needs_a_key):
        if (route.method, route.rule) in OWN_TESTS:
            continue
        answer = stranger.call(route.method, route.path(belongings.ids), BODIES.get((route.method, route.rule)))
        if route.arguments:
            said = answer.json.get("error", answer.json)
            assert (answer.status_code, said["code"]) == (404, "not_found"), route
            continue  # the answer names what was asked for, as the stranger wrote it
        assert answer.status_code in (200, 201, 202), (route, answer.text)
        assert belongings.hidden_from(answer.text), route

    assert what_there_is(caller, belongings) == before


def test_the_installations_routes_take_no_tenants_key(
    app: Flask, caller: Caller, stranger: Caller, belongings: Belongings
) -> None:
    before = what_there_is(caller, belongings)
    for route in routes(app, lambda rule: rule.startswith(OPERATORS)):
        for tenant_id in (caller.tenant_id, stranger.tenant_id):
            answer = stranger.call(route.method, route.path({"tenant_id": tenant_id} | OF_THE_INSTALLATION), {})
            assert (answer.status_code, answer.json["code"]) == (403, "forbidden"), route

    assert what_there_is(caller, belongings) == before


def test_filters_and_cursors_reach_into_no_other_tenant(
    caller: Caller, stranger: Caller, belongings: Belongings
) -> None:
    for query in ("?tag=mine", f"?after={belongings.job_id[:-1]}z"):
        assert stranger.get(f"/v1/jobs{query}").json["data"] == []
    entry = caller.get("/v1/audit").json["data"][0]
    for query in (f"?after={entry['id'][:-1]}z", f"?target={entry['target']}", f"?actor={entry['actor']['id']}"):
        assert stranger.get(f"/v1/audit{query}").json["data"] == []
    for query in (
        f"?endpoint={belongings.endpoint_id}",
        f"?job={belongings.job_id}",
        f"?after={belongings.delivery_id[:-1]}z",
    ):
        assert stranger.get(f"/v1/webhook-deliveries{query}").json["data"] == []
    assert len(caller.get("/v1/events").json["data"]) == 4
    assert stranger.get("/v1/events").json["data"] == []
    assert stranger.get("/v1/events?after=1").status_code == 422
    assert stranger.get(f"/v1/audit?tenant={caller.tenant_id}").status_code == 422


def test_pages_of_another_tenant_are_not_there(
    app: Flask,
    caller: Caller,
    stranger: Caller,
    belongings: Belongings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = User(
        id=new_id("usr"),
        tenant_id=stranger.tenant_id,
        email="stranger@example.com",
        password_hash=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("x"),
        role="admin",
    )
    with database.transaction() as session:
        session.add(person)
    browser = app.test_client()
    with browser.session_transaction() as cookie:
        cookie.update(session_of(person))
    before = what_there_is(caller, belongings)
    # Another test holds the form token; here it would hide what comes after.
    monkeypatch.setitem(app.config, "WTF_CSRF_METHODS", set())
    for route in routes(app, lambda rule: rule.startswith(PORTAL)):
        if (route.method, route.rule) in OWN_TESTS:
            continue
        answer = browser.open(route.path(belongings.ids), method=route.method, headers={"Accept": "text/html"})
        if route.arguments:
            assert answer.status_code == 404, route
            continue
        assert answer.status_code in (200, 422), route
        assert belongings.hidden_from(answer.text), route
    assert browser.get(f"/jobs/new?from={belongings.job_id}").status_code == 404

    assert what_there_is(caller, belongings) == before


def test_a_strangers_failed_cancel_and_retry_change_nothing(caller: Caller, stranger: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    stranger.post(f"/v1/jobs/{job_id}/cancel")
    worker.finish()
    stranger.post(f"/v1/jobs/{job_id}/retry")

    job = caller.get(f"/v1/jobs/{job_id}").json
    assert (job["status"], job["cancel_requested_at"]) == ("succeeded", None)
    assert len(caller.get("/v1/jobs").json["data"]) == 1
