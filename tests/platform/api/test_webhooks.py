"""Webhook endpoints over HTTP: who makes which, and what they get; with real deliveries to a real receiver."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.auth.services import Scope
from penstock.batches.telling import BatchEvent
from penstock.bulk.telling import BulkEvent
from penstock.db import Database
from penstock.feedback.services import FEEDBACK_GIVEN
from penstock.jobs.events import EventType
from penstock.rollouts.events import ChampionEvent, RolloutEvent
from penstock.settings import Settings
from penstock.webhooks.documents import (
    WebhookDeliveryDetail,
    WebhookDeliveryDocument,
    WebhookEndpointDocument,
    WebhookEndpointWithSecret,
)
from penstock.webhooks.endpoints import MOST_ENDPOINTS, EndpointEvent
from penstock.webhooks.schemas import WebhookEventName
from redis import Redis

from tests.factories import WordCounter
from tests.platform.api.conftest import BODY, Caller
from tests.platform.api.webhooking import (
    DELIVERIES,
    ENDPOINTS,
    attempt_all,
    deliveries,
    finish_a_job,
    is_signed_by,
    make_endpoint,
)
from tests.platform.webhooks.conftest import receiver
from tests.platform.webhooks.receiver import Receiver

__all__ = ["receiver"]

pytestmark = pytest.mark.usefixtures("deployment")


def test_an_endpoint_is_made_with_its_secret_once(caller: Caller, receiver: Receiver) -> None:
    made = caller.post(ENDPOINTS, {"url": receiver.url, "description": " books "})
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    document = WebhookEndpointWithSecret.model_validate(made.json)
    assert document.secret.startswith("whsec_")
    assert document.description == "books"
    assert document.events == ["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
    got = caller.get(made.headers["Location"])
    WebhookEndpointDocument.model_validate(got.json)
    assert made.json == got.json | {"secret": document.secret}
    assert caller.get(ENDPOINTS).json["data"] == [got.json]
    assert document.secret not in got.text + caller.get("/v1/audit").text


def test_it_gets_the_events_that_it_named_of_every_job(caller: Caller, database: Database, receiver: Receiver) -> None:
    made = make_endpoint(caller, receiver.url, events=["job.queued"])
    job_id = finish_a_job(caller)
    (queued,) = deliveries(caller)
    WebhookDeliveryDocument.model_validate(queued)
    assert (queued["endpoint_id"], queued["job_id"], queued["event_number"]) == (made["id"], job_id, 1)
    assert attempt_all(database, caller) == ["delivered"]
    (request,) = receiver.requests
    payload = json.loads(request.body)
    assert is_signed_by(made["secret"], request)
    assert (payload["type"], payload["event_number"], payload["data"]["id"]) == ("job.queued", 1, job_id)
    assert payload["data"]["status"] == "queued"
    detail = WebhookDeliveryDetail.model_validate(caller.get(f"{DELIVERIES}/{queued['id']}").json)
    assert detail.payload == payload
    assert [(tried.number, tried.status_code) for tried in detail.attempt_history] == [(1, 200)]


def test_a_jobs_own_address_and_endpoints_each_get_it(caller: Caller, receiver: Receiver) -> None:
    endpoints = {make_endpoint(caller, receiver.url)["id"] for _ in range(2)}
    job_id = caller.submit(webhook={"url": receiver.url})
    caller.post(f"/v1/jobs/{job_id}/cancel")
    assert {found["endpoint_id"] for found in deliveries(caller, f"?job={job_id}")} == {None, *endpoints}


def test_endpoints_of_others_and_disabled_ones_get_nothing(
    caller: Caller, make_caller: Callable[..., Caller], receiver: Receiver
) -> None:
    other = make_caller()
    make_endpoint(other, receiver.url)
    caller.call("PATCH", f"{ENDPOINTS}/{make_endpoint(caller, receiver.url)['id']}", {"disabled": True})
    finish_a_job(caller)
    assert deliveries(caller) == deliveries(other) == []


def test_every_event_can_be_named() -> None:
    assert set(get_args(WebhookEventName)) == {
        *EventType,
        *BatchEvent,
        *BulkEvent,
        *RolloutEvent,
        *ChampionEvent,
        EndpointEvent.DISABLED,
        FEEDBACK_GIVEN,
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "https://1.1.1.1/", "events": []}, "events"),
        ({"url": "https://1.1.1.1/", "events": ["job.done"]}, "events.0"),
        ({"url": "https://1.1.1.1/", "events": ["job.failed", "job.failed"]}, "events"),
        ({"url": "https://1.1.1.1/", "secret": "whsec_x"}, "secret"),
        ({"url": "https://1.1.1.1/\n", "events": ["job.failed"]}, "url"),
    ],
)
def test_what_is_wrong_is_named(caller: Caller, body: Any, field: str) -> None:
    answer = caller.post(ENDPOINTS, body)
    assert (answer.status_code, answer.json["field"]) == (422, field)


ADDRESSES = [
    "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://[::1]/",
    "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://10.0.0.1/", "http://169.254.169.254/latest",
    "http://100.64.0.1/", "http://localhost/", "http://a.localhost./", "http://[fe80::1]/", "http://0/",
]  # fmt: skip


@pytest.fixture
def strict(settings: Settings, database: Database, redis: Redis, caller: Caller) -> Caller:
    """The caller at a server that lets webhooks go to public addresses alone."""
    tight = settings.model_copy(update={"webhook_allow_loopback": False})
    app: Flask = create_app(tight, prompts=WordCounter(), database=database, redis=redis)
    return Caller(app.test_client(), caller.tenant_id, caller.key)


@pytest.mark.parametrize("url", ADDRESSES)
def test_no_inner_address_is_taken(strict: Caller, url: str) -> None:
    made = strict.post(ENDPOINTS, {"url": url})
    assert (made.status_code, made.json["field"]) == (422, "url")
    submitted = strict.post("/v1/jobs", BODY | {"webhook": {"url": url}})
    assert submitted.status_code == 422
    assert submitted.json["field"].startswith("webhook")
    assert strict.get("/v1/jobs").json["data"] == strict.get(ENDPOINTS).json["data"] == []


def test_nor_is_an_endpoint_moved_to_one_nor_to_an_unknown_name(caller: Caller, strict: Caller) -> None:
    path = f"{ENDPOINTS}/{make_endpoint(caller, 'http://127.0.0.1:9/')['id']}"
    assert strict.call("PATCH", path, {"url": "http://10.0.0.1/"}).json["code"] == "webhook_address_refused"
    assert strict.call("PATCH", path, {"url": "http://no-such-host.invalid/"}).json["code"] == "webhook_address_refused"
    assert strict.call("PATCH", path, {"url": "https://1.1.1.1/new"}).json["url"] == "https://1.1.1.1/new"


def test_public_addresses_are_taken_by_jobs(strict: Caller) -> None:
    assert strict.post("/v1/jobs", BODY | {"webhook": {"url": "https://hooks.example/x"}}).status_code == 202


def test_who_may_only_use_jobs_changes_no_endpoint(
    caller: Caller, make_caller: Callable[..., Caller], receiver: Receiver
) -> None:
    program = make_caller((Scope.JOBS_WRITE, Scope.JOBS_READ))
    assert program.post(ENDPOINTS, {"url": receiver.url}).json["code"] == "forbidden"
    assert program.get(ENDPOINTS).json["data"] == []


def test_there_is_a_limit(caller: Caller, receiver: Receiver) -> None:
    for _ in range(MOST_ENDPOINTS):
        make_endpoint(caller, receiver.url)
    answer = caller.post(ENDPOINTS, {"url": receiver.url})
    assert (answer.status_code, answer.json["code"]) == (409, "too_many_webhook_endpoints")
