"""What protects people: form tokens, headers, escaping, and walls between tenants."""

from collections.abc import Callable

import pytest
from flask import Flask
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.portal import account_views, job_views
from penstock.registry.models import Deployment
from sqlalchemy import update

from tests.platform.portal.conftest import Person

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def portal_rules(app: Flask, method: str) -> list[str]:
    names = (f"{account_views.blueprint.name}.", f"{job_views.blueprint.name}.")
    rules = [
        rule.rule
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith(names) and method in (rule.methods or ())
    ]
    assert rules
    return rules


def test_every_write_needs_the_form_token(app: Flask, person: Person, deployment: Deployment) -> None:
    job = person.submit()
    for rule in portal_rules(app, "POST"):
        path = rule.replace("<job_id>", job.id)
        for form in ({}, {"csrf_token": "made-up"}):
            answer = person.client.post(path, data=form, headers={"Accept": "text/html"})
            assert answer.status_code == 400, path
            assert "This form has expired" in answer.text
    assert person.job(job.id).state == "queued"


def test_another_tenants_job_does_not_exist(
    app: Flask, person: Person, make_person: Callable[..., Person], deployment: Deployment
) -> None:
    job = person.submit()
    stranger = make_person("eve@example.com")
    for rule in portal_rules(app, "GET"):
        if "<job_id>" in rule:
            assert stranger.get(rule.replace("<job_id>", job.id)).status_code == 404, rule
    for rule in portal_rules(app, "POST"):
        if "<job_id>" in rule:
            assert stranger.post(rule.replace("<job_id>", job.id)).status_code == 404, rule
    assert stranger.get(f"/jobs/new?from={job.id}").status_code == 404
    assert job.id not in stranger.get("/jobs").text
    assert job.id not in stranger.get("/jobs/rows").text
    assert person.job(job.id).state == "queued"


def test_every_page_is_behind_the_sign_in(app: Flask, deployment: Deployment) -> None:
    client = app.test_client()
    for rule in portal_rules(app, "GET"):
        if rule == "/sign-in":
            continue
        answer = client.get(rule.replace("<job_id>", "job_x"))
        assert answer.status_code == 302, rule


@pytest.mark.parametrize("path", ["/sign-in", "/jobs", "/jobs/new", "/jobs/{job}", "/jobs/none", "/no/such/page"])
def test_pages_allow_no_foreign_and_no_inline_script(person: Person, deployment: Deployment, path: str) -> None:
    if path == "/sign-in":
        person.post("/sign-out")
    answer = person.get(path.format(job=person.submit().id))
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "<script>" not in answer.text
    assert " style=" not in answer.text


def test_whatever_a_job_holds_is_text(person: Person, deployment: Deployment, database: Database) -> None:
    job = person.submit(
        input={"messages": [{"role": "user", "content": HOSTILE}]}, tags=["<b>"], metadata={"<i>": "<u>"}
    )
    choice = {"index": 0, "text": HOSTILE, "token_ids": [], "finish_reason": "<hr>"}
    with database.transaction() as session:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(
                state="failed",
                finished_at=job.created_at,
                output={"choices": [choice]},
                error={"code": "<code>", "message": HOSTILE},
            )
        )
    for path in (f"/jobs/{job.id}", f"/jobs/{job.id}/changes", "/jobs", "/jobs/rows", f"/jobs/new?from={job.id}"):
        html = person.get(path).text
        assert "&lt;script&gt;alert(1)" in html or path.startswith("/jobs/new"), path
        for tag in ("<script>", "<img", "<u>", "<hr>", "<i>"):
            assert tag not in html, (path, tag)


def test_a_page_of_the_api_keeps_its_own_headers(app: Flask) -> None:
    assert "Content-Security-Policy" not in app.test_client().get("/healthz").headers
