"""Tenants never see each other: every route is walked with another tenant's key."""

from collections.abc import Callable

import pytest
from flask import Flask
from werkzeug.routing import Rule

from tests.api.conftest import BODY, Caller, Worker

pytestmark = pytest.mark.usefixtures("deployment")

# Routes without anybody's id in them, and what a stranger gets there; anything else must be a 404.
OWN_ONLY = {"/v1/jobs": 200, "/v1/models": 200, "/v1/webhook-secret": 200}


def api_routes(app: Flask) -> list[tuple[str, Rule]]:
    return [
        (method, rule)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        if rule.rule.startswith("/v1/")
    ]


def test_every_route_needs_a_key(app: Flask, caller: Caller) -> None:
    for method, rule in api_routes(app):
        path = rule.rule.replace("<job_id>", caller.submit())
        answer = caller.client.open(path, method=method, json=BODY)
        assert answer.status_code == 401, (method, path)


def test_every_route_hides_what_is_another_tenants(
    app: Flask, caller: Caller, make_caller: Callable[..., Caller], worker: Worker
) -> None:
    job_id = caller.submit(tags=["mine"])
    stranger = make_caller()
    walked = 0
    for method, rule in api_routes(app):
        if rule.arguments:
            assert rule.arguments == {"job_id"}, f"tell this test how to fill {rule.rule}"
            answer = stranger.call(method, rule.rule.replace("<job_id>", job_id))
            assert answer.status_code == 404, (method, rule.rule)
            assert answer.json["code"] == "not_found"
            walked += 1
        elif method == "GET":
            answer = stranger.get(rule.rule)
            assert answer.status_code == OWN_ONLY[rule.rule]
            assert job_id not in answer.text

    assert walked >= 4
    assert caller.get(f"/v1/jobs/{job_id}").json["status"] == "queued"
    assert stranger.get("/v1/jobs?tag=mine").json["data"] == []
    assert stranger.get(f"/v1/jobs?after={job_id[:-1]}z").json["data"] == []


def test_a_strangers_failed_cancel_and_retry_change_nothing(
    caller: Caller, make_caller: Callable[..., Caller], worker: Worker
) -> None:
    job_id = caller.submit()
    stranger = make_caller()
    worker.claim()
    stranger.post(f"/v1/jobs/{job_id}/cancel")
    worker.finish()
    stranger.post(f"/v1/jobs/{job_id}/retry")

    job = caller.get(f"/v1/jobs/{job_id}").json
    assert (job["status"], job["cancel_requested_at"]) == ("succeeded", None)
    assert len(caller.get("/v1/jobs").json["data"]) == 1
