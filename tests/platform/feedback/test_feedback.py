"""Feedback on real rows: kept once, for answers that there are, with the version that gave them."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from penstock.db import Database
from penstock.feedback.models import Feedback
from penstock.jobs.models import Job
from penstock.registry.models import Deployment
from penstock.usage.models import UsageEntry
from sqlalchemy import delete, select

from tests.factories import make_deployment
from tests.platform.api.conftest import Caller, Worker, app, caller, deployment, make_caller, worker

__all__ = ["app", "caller", "deployment", "make_caller", "worker"]  # fixtures


@pytest.fixture
def answered(caller: Caller, worker: Worker) -> str:
    job_id = caller.submit()
    worker.claim()
    worker.write("Hi")
    worker.finish()
    return job_id


def give(caller: Caller, job_id: str, body: Any, **headers: str) -> Any:
    return caller.post(f"/v1/jobs/{job_id}/feedback", body, **headers)


def test_what_is_said_is_kept_with_who_said_it_and_which_version_it_is_about(
    caller: Caller, answered: str, database: Database, deployment: Deployment
) -> None:
    with database.transaction() as session:
        make_deployment(session, version="2")  # the champion of today, which did not give the answer

    first = give(caller, answered, {"score": 0.25, "comment": "wrong total", "choice": 0, "user": "ann"})
    second = give(caller, answered, {"label": "rejected"})

    key_id = caller.get("/v1/keys").json["data"][0]["id"]
    assert first.status_code == 201
    assert {name: first.json[name] for name in ("choice", "score", "label", "comment", "user", "api_key_id")} == {
        "choice": 0, "score": 0.25, "label": None, "comment": "wrong total", "user": "ann", "api_key_id": key_id,
    }  # fmt: skip
    assert (second.json["model_name"], second.json["model_version"], second.json["job_id"]) == ("tiny", "1", answered)
    with database.transaction() as session:
        assert set(session.scalars(select(Feedback.deployment_id))) == {deployment.id}
    assert caller.get(f"/v1/jobs/{answered}/feedback").json["data"] == [first.json, second.json]


def test_a_page_follows_the_other(caller: Caller, answered: str) -> None:
    ids = [give(caller, answered, {"score": score}).json["id"] for score in (0.0, 0.5, 1.0)]
    page = caller.get(f"/v1/jobs/{answered}/feedback?limit=2").json
    rest = caller.get(f"/v1/jobs/{answered}/feedback?limit=2&after={page['next']}").json
    assert ([each["id"] for each in page["data"] + rest["data"]], rest["has_more"], rest["next"]) == (ids, False, None)


def test_one_key_is_one_judgement(caller: Caller, make_caller: Callable[..., Caller], answered: str) -> None:
    first = give(caller, answered, {"score": 1.0}, Idempotency_Key="a")
    again = give(caller, answered, {"score": 1.0}, Idempotency_Key="a")
    other = give(caller, answered, {"score": 0.0}, Idempotency_Key="a")

    assert again.json == first.json
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert len(caller.get(f"/v1/jobs/{answered}/feedback").json["data"]) == 1
    assert [event["type"] for event in caller.get("/v1/events").json["data"]].count("job.feedback") == 1
    stranger = make_caller()
    assert give(stranger, answered, {"score": 1.0}, Idempotency_Key="a").status_code == 404


def test_twins_at_the_same_moment_are_one_judgement(app: Any, caller: Caller, answered: str) -> None:
    callers = [Caller(app.test_client(), caller.tenant_id, caller.key) for _ in range(4)]
    answers: list[Any] = []
    twins = [
        threading.Thread(target=lambda one=one: answers.append(give(one, answered, {"score": 1}, Idempotency_Key="t")))
        for one in callers
    ]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join()

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 3


def test_the_feed_and_endpoints_hear_of_it_and_the_jobs_own_sequence_stays(caller: Caller, answered: str) -> None:
    caller.post("/v1/webhook-endpoints", {"url": "http://127.0.0.1:9/", "events": ["job.feedback"]})
    given = give(caller, answered, {"score": 0.5, "label": "ok", "comment": "private words"}).json

    event = caller.get("/v1/events").json["data"][-1]
    assert (event["type"], event["job_id"], event["event_number"]) == ("job.feedback", answered, None)
    assert event["data"] == {"id": given["id"], "choice": None, "score": 0.5, "label": "ok"}
    (owed,) = caller.get("/v1/webhook-deliveries").json["data"]
    payload = caller.get(f"/v1/webhook-deliveries/{owed['id']}").json["payload"]
    assert (payload["type"], payload["data"]) == ("job.feedback", given)
    timeline = caller.get(f"/v1/jobs/{answered}").json["timeline"]
    assert [each["type"] for each in timeline] == ["job.queued", "job.running", "job.succeeded"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"comment": "nothing else"}, ""),
        ({"score": 1.5}, "score"),
        ({"score": "1"}, "score"),
        ({"label": "two words"}, "label"),
        ({"score": 1, "comment": ""}, "comment"),
        ({"score": 1, "choice": 1}, "choice"),
        ({"score": 1, "choice": -1}, "choice"),
        ({"score": 1, "stars": 5}, "stars"),
    ],
)
def test_what_says_nothing_is_refused(caller: Caller, answered: str, body: Any, field: str) -> None:
    refused = give(caller, answered, body)
    assert (refused.status_code, refused.json["code"], refused.json.get("field") or "") == (
        422, "validation_failed", field,
    )  # fmt: skip
    assert caller.get(f"/v1/jobs/{answered}/feedback").json["data"] == []


def test_what_has_not_ended_has_no_answer_to_judge(caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    assert (early := give(caller, job_id, {"score": 1})).status_code == 409
    assert early.json["code"] == "job_not_finished"
    caller.post(f"/v1/jobs/{job_id}/cancel")
    assert give(caller, job_id, {"label": "too-slow"}).status_code == 201
    assert give(caller, job_id, {"score": 0, "choice": 0}).json["detail"].endswith("it has none")


def test_it_goes_with_its_job(caller: Caller, answered: str, database: Database) -> None:
    give(caller, answered, {"score": 1})
    with database.transaction() as session:
        session.execute(delete(UsageEntry))
        session.execute(delete(Job).where(Job.id == answered))
        assert session.scalars(select(Feedback)).all() == []
