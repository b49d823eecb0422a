"""`DELETE /v1/jobs/{id}`: all of the job is gone at once, and its usage is not."""

from collections.abc import Callable
from typing import Any

import pytest
from penstock.auth.services import Scope
from penstock.db import Database
from penstock.jobs.journal import Append, Journal, JournalEntry
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from redis import Redis
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from tests.platform.api.conftest import Caller, Worker, stream
from tests.platform.api.conftest import worker as worker
from tests.platform.retention.conftest import MARK, Stage

BODY_OF_LINE = {"model": "tiny", "input": {"prompt": MARK}}


def usage_of(caller: Caller) -> list[Any]:
    return [caller.get(f"/v1/usage?by={by}").json["data"] for by in ("day", "model,version", "key", "tag", "tenant")]


def test_nothing_is_left_of_a_deleted_job(stage: Stage) -> None:
    caller = stage.caller
    caller.post("/v1/webhook-endpoints", {"url": "http://127.0.0.1:9/hook"})
    asked = {"model": "tiny", "input": {"prompt": MARK}, "webhook": {"url": "http://127.0.0.1:9/own"}}
    job_id = caller.post("/v1/jobs", asked, Idempotency_Key="once").json["id"]
    stage.finish_next()
    stage.place()
    retried = caller.post(f"/v1/jobs/{job_id}/retry").json
    assert retried["retry_of"] == job_id
    stage.finish_next()
    assert {"job", "job_journal", "event", "feed_event", "webhook_delivery", "idempotency_key"} <= {
        name for name, rows in stage.traces(job_id).items() if rows
    }

    for each in (job_id, retried["id"]):
        assert caller.call("DELETE", f"/v1/jobs/{each}").status_code == 204
    stage.place()

    assert stage.traces(MARK) == {}
    left = stage.traces(job_id)
    assert set(left) == {"feed_event"}
    assert len(left["feed_event"]) == 1
    told = [(event["type"], event["job_id"], event["data"]) for event in caller.get("/v1/events").json["data"]]
    assert told == [("job.deleted", each, {"id": each}) for each in (job_id, retried["id"])]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
        assert caller.call(method, f"/v1/jobs/{job_id}{path}").json["code"] == "not_found", path
    assert caller.get(f"/v1/webhook-deliveries?job={job_id}").json["data"] == []
    assert caller.post("/v1/jobs", asked, Idempotency_Key="once").json["id"] != job_id


def test_its_stored_response_goes_with_it(stage: Stage) -> None:
    told = stage.caller.post("/v1/responses", {"model": "tiny", "input": MARK, "background": True}).json
    stage.finish_next()
    job_id = stage.caller.get("/v1/jobs").json["data"][0]["id"]

    assert stage.caller.call("DELETE", f"/v1/jobs/{job_id}").status_code == 204

    assert stage.caller.get(f"/v1/responses/{told['id']}").status_code == 404
    assert stage.traces(MARK) == {}


def test_its_usage_stays_in_every_report(stage: Stage) -> None:
    stage.operator.post(
        "/v1/admin/prices", {"model": "tiny", "currency": "EUR", "input": "1000", "cached": 0, "output": "5000"}
    )
    ids = [stage.run_job(stage.caller, tags=tags) for tags in (["a", "b"], ["b"], ["a", "b"], [])]
    before = usage_of(stage.caller)
    assert before[0][0]["jobs"] == 4
    assert float(before[0][0]["cost"]) > 0

    for job_id in ids[:3]:
        stage.caller.call("DELETE", f"/v1/jobs/{job_id}")

    assert usage_of(stage.caller) == before
    assert sorted(row.count('"jobs":2') for row in stage.rows()["usage_day"]) == [0, 1]
    assert stage.caller.get("/v1/usage?by=model&tag=b").json["data"][0]["jobs"] == 3
    assert stage.caller.get("/v1/usage?by=model&tag=c").json["data"] == []
    assert stage.operator.get("/v1/usage?by=model").json["data"] == []


def test_the_database_lets_no_job_go_whose_usage_is_not_counted(stage: Stage) -> None:
    job_id = stage.run_job(stage.caller)
    with pytest.raises(IntegrityError), stage.database.transaction() as session:
        session.execute(delete(Job).where(Job.id == job_id))


def test_a_job_that_waits_or_runs_is_not_deleted(caller: Caller, worker: Worker, stage: Stage) -> None:
    job_id = caller.submit()
    for state in ("queued", "running"):
        refused = caller.call("DELETE", f"/v1/jobs/{job_id}")
        assert (refused.status_code, refused.json["code"], refused.json["status_now"]) == (
            409,
            "job_not_finished",
            state,
        )
        if state == "queued":
            worker.claim()
    worker.write(MARK)
    worker.finish(JobState.FAILED)
    assert set(stage.traces(MARK)) == {"job", "job_journal", "redis"}
    assert caller.call("DELETE", f"/v1/jobs/{job_id}").status_code == 204
    assert stage.traces(MARK) == {}


def test_a_line_goes_once_its_batch_has_ended_and_its_files_are_deleted(stage: Stage) -> None:
    caller, bench = stage.caller, stage.bench
    batch_id = bench.make([{"custom_id": "1", "method": "POST", "url": "/v1/jobs", "body": BODY_OF_LINE}])
    bench.tend()
    bench.serve()
    (job,) = caller.get(f"/v1/jobs?batch={batch_id}").json["data"]
    early = caller.call("DELETE", f"/v1/jobs/{job['id']}")
    assert (early.status_code, early.json["code"], early.json["files"]) == (409, "job_in_batch", [])
    batch = bench.run_to_end(batch_id)

    refused = caller.call("DELETE", f"/v1/jobs/{job['id']}").json
    files = sorted([batch["input_file_id"], batch["output_file_id"]])
    assert (refused["code"], refused["batch"], refused["files"]) == ("job_in_batch", batch_id, files)
    for file_id in files:
        caller.call("DELETE", f"/v1/files/{file_id}")
    assert caller.call("DELETE", f"/v1/jobs/{job['id']}").status_code == 204

    (result,) = caller.get(f"/v1/batches/{batch_id}/results").json["data"]
    assert (result["response"], result["error"]["code"], result["status"]) == (None, "job_deleted", "succeeded")
    assert stage.traces(MARK) == {}


def test_a_scope_is_needed(make_caller: Callable[..., Caller]) -> None:
    reader = make_caller((Scope.JOBS_READ,))
    assert reader.call("DELETE", "/v1/jobs/job_absent").status_code == 403


def test_a_reader_of_a_job_that_is_deleted_meanwhile_is_let_go(caller: Caller, worker: Worker, stage: Stage) -> None:
    job_id = caller.submit()
    reader = stream(caller, job_id)
    assert next(reader).type == "job.queued"
    worker.claim()
    worker.finish(announce=False)
    assert caller.call("DELETE", f"/v1/jobs/{job_id}").status_code == 204
    worker.journal.announce([job_id])
    assert [event.type for event in reader if event.type != "job.running"] == []


def test_who_held_it_writes_nothing_after_it(database: Database, redis: Redis) -> None:
    journal = Journal(redis, "test")
    journal.open("job_gone", 1)
    entry = JournalEntry(0, 0, 5, MARK, None, 1)
    journal.append([Append("job_gone", 1, 0, [entry])])
    journal.forget(["job_gone", "job_never_there"])
    journal.append([Append("job_gone", 1, 0, [entry])])
    assert journal.read("job_gone") == []
    assert [key for key in redis.scan_iter() if b"never" in key] == []
