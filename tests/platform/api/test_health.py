"""Liveness, readiness and metrics."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs.models import Job
from penstock.metrics import Metrics
from penstock.outbox.models import OutboxMessage
from penstock.registry.models import Deployment, Hosting
from penstock.registry.models import Worker as WorkerRow
from penstock.rollouts.assignment import Arm
from penstock.rollouts.models import GateResult
from penstock.settings import Settings
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import delete, insert, update

from tests.factories import WordCounter, make_deployment, make_rollout
from tests.platform.api.conftest import Caller, Worker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def ask(app: Flask, path: str) -> Any:
    return app.test_client().get(path)


def samples(app: Flask) -> Samples:
    answer = ask(app, "/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def cut_off(settings: Settings) -> Iterator[Flask]:
    """An application whose PostgreSQL and Redis do not answer."""
    app = create_app(
        settings.model_copy(
            update={
                "database_url": SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/nothing"),
                "redis_url": SecretStr("redis://127.0.0.1:1/0"),
            }
        ),
        prompts=WordCounter(),
    )
    yield app
    app.extensions["penstock"].close()


def test_a_process_that_answers_is_alive(cut_off: Flask) -> None:
    assert ask(cut_off, "/healthz").json == {"status": "ok"}


def test_all_well_is_ready(app: Flask) -> None:
    answer = ask(app, "/readyz")

    assert (answer.status_code, answer.json["status"]) == (200, "ready")
    assert set(answer.json["parts"]) == {"database", "redis", "outbox", "consumption"}


def test_without_the_database_it_is_not_ready_and_says_why(cut_off: Flask) -> None:
    answer = ask(cut_off, "/readyz")

    assert (answer.status_code, answer.json["status"]) == (503, "unready")
    assert not answer.json["parts"]["database"]["ok"]
    assert not answer.json["parts"]["redis"]["ok"]


def test_messages_that_no_relay_takes_degrade_it(app: Flask, database: Database) -> None:
    with database.transaction() as session:
        old = {"topic": "doorbell", "payload": {}, "created_at": utc_now() - timedelta(minutes=5)}
        session.execute(insert(OutboxMessage), old)
    answer = ask(app, "/readyz")

    assert (answer.status_code, answer.json["status"]) == (200, "degraded")
    assert "1 messages wait" in answer.json["parts"]["outbox"]["reason"]


def test_jobs_that_wait_beside_an_idle_worker_degrade_it(
    app: Flask, caller: Caller, worker: Worker, database: Database
) -> None:
    caller.submit()
    with database.transaction() as session:
        session.execute(delete(OutboxMessage))
        session.execute(update(Job).values(queued_at=utc_now() - timedelta(minutes=5)))
    assert ask(app, "/readyz").json["status"] == "ready"  # the worker has no room

    with database.transaction() as session:
        session.execute(update(Hosting).values(free_slots=2))
    assert ask(app, "/readyz").json["status"] == "ready"  # the worker has only just begun

    with database.transaction() as session:
        session.execute(update(WorkerRow).values(started_at=utc_now() - timedelta(minutes=5)))
    answer = ask(app, "/readyz")
    assert (answer.status_code, answer.json["status"]) == (200, "degraded")
    assert "1 jobs have waited" in answer.json["parts"]["consumption"]["reason"]

    with database.transaction() as session:
        session.execute(update(Job).values(held=True))
    assert ask(app, "/readyz").json["status"] == "ready"  # nobody may claim what is held


def test_a_pile_is_counted_no_further_than_is_told(app: Flask, database: Database) -> None:
    with database.transaction() as session:
        old = {"topic": "doorbell", "payload": {}, "created_at": utc_now() - timedelta(minutes=5)}
        session.execute(insert(OutboxMessage), [old] * 1001)
    assert "1000 or more messages wait" in ask(app, "/readyz").json["parts"]["outbox"]["reason"]


def test_metrics_say_what_waits_and_runs(
    app: Flask, caller: Caller, worker: Worker, deployment: Deployment, database: Database
) -> None:
    for job_class in ("interactive", "interactive", "batch"):
        caller.submit(**{"class": job_class})
    worker.claim()
    with database.transaction() as session:
        session.execute(update(Job).where(Job.state == "queued").values(queued_at=utc_now() - timedelta(minutes=5)))
        session.execute(update(Hosting).values(free_slots=3))
        rollout = make_rollout(session, deployment, make_deployment(session, version="2", champion=False))
        splits = [{"share": 0.1, "candidate": 1, "champion": 9}, {"share": 0.5, "candidate": 2, "champion": 3}]
        seen = {"evidence": {"units": {"splits": splits}}, "judgement": {}, "judged_at": utc_now()}
        session.add(GateResult(rollout_id=rollout.id, state="canary", step=0, **seen))
    found = samples(app)
    units = {arm: found["penstock_rollout_units", frozenset({("model", "tiny"), ("arm", arm)})] for arm in Arm}
    assert units == {Arm.CHAMPION: 12, Arm.CANDIDATE: 3}
    labels = frozenset({"model": "tiny", "version": "1", "deployment": deployment.id}.items())

    classed = {name: labels | {("class", name)} for name in ("interactive", "batch", "shadow")}
    assert [found["penstock_jobs_waiting", each] for each in classed.values()] == [1, 1, 0]
    assert found["penstock_jobs_running", labels] == 1
    assert 299 < found["penstock_oldest_waiting_seconds", classed["batch"]] < 400
    assert found["penstock_oldest_waiting_seconds", classed["shadow"]] == 0
    assert 0 <= found["penstock_worker_seconds_since_claim", frozenset({("worker", worker.id)})] < 400
    assert found["penstock_free_slots", labels] == 3
    assert found["penstock_outbox_messages", frozenset()] == 3
    assert found["penstock_database_up", frozenset()] == 1


def test_scrapes_one_after_the_other_count_the_queue_once(
    caller: Caller, deployment: Deployment, database: Database
) -> None:
    now = 0.0
    metrics = Metrics(database, lambda: 0, lambda: now)

    def waiting() -> bool:
        caller.submit()
        return b"penstock_outbox_messages 1.0" in metrics.exposition()

    assert waiting()
    assert waiting()
    now = 600.0
    assert not waiting()


def test_an_idle_deployment_has_a_queue_of_zero(app: Flask, deployment: Deployment) -> None:
    labels = {"model": "tiny", "version": "1", "deployment": deployment.id, "class": "interactive"}

    assert samples(app)["penstock_jobs_waiting", frozenset(labels.items())] == 0


def test_streams_that_go_on_are_counted(app: Flask, caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.finish()
    caller.get(f"/v1/jobs/{job_id}/events").close()
    assert samples(app)["penstock_stream_resumes_total", frozenset()] == 0
    caller.get(f"/v1/jobs/{job_id}/events", Last_Event_ID="1.0").close()
    assert samples(app)["penstock_stream_resumes_total", frozenset()] == 1


def test_metrics_count_requests_by_route_not_by_path(app: Flask, caller: Caller, deployment: Deployment) -> None:
    job_id = caller.submit()
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}", "/v1/jobs/absent", "/v1/nothing"):
        caller.get(path)
    found = samples(app)

    def count(route: str, status: str) -> float:
        labels = {"method": "GET", "route": route, "status": status}
        return found["penstock_http_requests_total", frozenset(labels.items())]

    assert count("/v1/jobs/<job_id>", "200") == 2
    assert count("/v1/jobs/<job_id>", "404") == 1
    assert count("unknown", "404") == 1
    assert job_id not in str(found)


def test_metrics_are_answered_without_the_database(cut_off: Flask) -> None:
    assert samples(cut_off)["penstock_database_up", frozenset()] == 0
