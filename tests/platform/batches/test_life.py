"""A batch from its file to its end: expanded as there is room, settled, paused, cancelled, expired, tried again."""

import json
from datetime import timedelta

import pytest
from penstock.batches.models import Batch, BatchLine
from penstock.jobs import lease
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.webhooks.models import WebhookDelivery
from sqlalchemy import func, select, update

from tests.platform.batches.conftest import WAITING, Bench, lines, native


def test_a_batch_runs_to_its_end(bench: Bench) -> None:
    batch_id = bench.make(lines(9), metadata={"night": "run"}, priority=7)
    assert bench.get(batch_id)["status"] == "validating"

    done = bench.run_to_end(batch_id, ends={7: JobState.FAILED})

    assert (done["status"], done["metadata"]) == ("completed", {"night": "run"})
    assert done["request_counts"] == {"total": 9, "completed": 8, "failed": 1}
    assert done["usage"]["total_tokens"] == 9 * 3
    output = bench.content(done["output_file_id"])
    assert [result["line"] for result in output] == [line for line in range(1, 10) if line != 7]
    assert {result["response"]["body"]["output"]["choices"][0]["text"] for result in output} == {"done"}
    (failed,) = bench.content(done["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("id-7", 500)
    assert failed["response"]["body"]["error"]["code"] == "broken"
    assert bench.events() == ["batch.created", "batch.in_progress", "batch.finalizing", "batch.completed"]
    jobs = bench.jobs(batch_id)
    assert [job.batch_line for job in jobs] == list(range(1, 10))
    assert {(job.job_class, job.priority, job.deadline is not None) for job in jobs} == {(1, 7, True)}


def test_no_more_jobs_wait_than_may(bench: Bench) -> None:
    batch_id = bench.make(lines(40))
    for served in range(0, 12, 4):
        bench.tend()
        counts = bench.get(batch_id)["lines"]
        assert (counts["waiting"], counts["succeeded"]) == (WAITING, served)
        assert counts["unsubmitted"] == 40 - WAITING - served
        assert len(bench.caller.get(f"/v1/jobs?batch={batch_id}&limit=100").json["data"]) == WAITING + served
        bench.serve(most=4)


def test_counts_are_exact_before_anything_is_settled(bench: Bench) -> None:
    batch_id = bench.make(lines(5))
    bench.tend()
    bench.serve(most=2, ends={2: JobState.FAILED})
    held = bench.claim()

    counts = bench.get(batch_id)["lines"]
    assert held is not None
    assert counts == {
        "total": 5, "unsubmitted": 0, "waiting": 2, "running": 1, "succeeded": 1, "failed": 1,
        "cancelled": 0, "expired": 0, "invalid": 0,
    }  # fmt: skip


def test_results_are_read_as_lines_finish_without_gap_or_repeat(bench: Bench) -> None:
    batch_id = bench.make(lines(6))
    bench.tend()
    first, second = bench.claim(), bench.claim()
    assert first is not None
    assert second is not None
    bench.finish(second)
    bench.tend()
    bench.finish(first)
    bench.tend()

    page = bench.caller.get(f"/v1/batches/{batch_id}/results?limit=1").json
    assert ([result["line"] for result in page["data"]], page["has_more"]) == ([2], True)
    page = bench.caller.get(f"/v1/batches/{batch_id}/results?after={page['next']}").json
    assert ([result["line"] for result in page["data"]], page["has_more"]) == ([1], False)
    assert bench.caller.get(f"/v1/batches/{batch_id}/results?after={page['next']}").json["data"] == []
    bench.run_to_end(batch_id)
    rest = bench.caller.get(f"/v1/batches/{batch_id}/results?after={page['next']}").json
    assert [result["line"] for result in rest["data"]] == [3, 4, 5, 6]


def test_all_results_stream_as_lines(bench: Bench) -> None:
    """Wrong lines are settled without a job, so that many of them cost little."""
    batch_id = bench.make([*[b"x"] * 130, native(1)], invalid_lines="skip")
    done = bench.run_to_end(batch_id)

    answer = bench.caller.get(f"/v1/batches/{batch_id}/results?after=20", Accept="application/jsonl")
    told = [json.loads(line) for line in answer.data.splitlines()]
    assert answer.mimetype == "application/jsonl"
    assert [result["line"] for result in told] == list(range(21, 132))
    assert (told[-1]["status"], done["lines_per_minute"]) == ("succeeded", None)


def test_a_paused_batch_begins_nothing(bench: Bench) -> None:
    batch_id = bench.make(lines(10))
    bench.tend()
    running = bench.claim()
    assert running is not None
    assert bench.ask(batch_id, "pause")["status"] == "paused"
    bench.tend()

    assert bench.claim() is None
    bench.finish(running)
    bench.tend()
    counts = bench.get(batch_id)["lines"]
    assert (counts["succeeded"], counts["waiting"], counts["unsubmitted"]) == (1, WAITING - 1, 10 - WAITING)
    assert bench.ask(batch_id, "pause")["status"] == "paused"

    assert bench.ask(batch_id, "resume")["status"] == "in_progress"
    assert bench.run_to_end(batch_id)["lines"]["succeeded"] == 10
    assert bench.events().count("batch.paused") == bench.events().count("batch.resumed") == 1


def test_a_job_that_comes_back_during_a_pause_is_held_too(bench: Bench) -> None:
    batch_id = bench.make(lines(2))
    bench.tend()
    running = bench.claim()
    assert running is not None
    bench.ask(batch_id, "pause")
    with bench.workshop.database.transaction() as session:
        lease.hand_back(session, running, RunOutcome.LEASE_LOST, "fell silent", max_own_crashes=3)
    bench.tend()
    assert bench.claim() is None


def test_a_batch_may_be_paused_while_it_is_validated(bench: Bench) -> None:
    batch_id = bench.make(lines(2))
    assert bench.ask(batch_id, "pause")["status"] == "validating"
    bench.tend()
    assert bench.get(batch_id)["status"] == "paused"
    assert bench.jobs(batch_id) == []


def test_another_priority_reaches_waiting_and_coming_jobs(bench: Bench) -> None:
    batch_id = bench.make(lines(10))
    bench.tend()
    answer = bench.caller.call("PATCH", f"/v1/batches/{batch_id}", {"priority": 50})
    assert answer.json["priority"] == 50
    bench.serve(most=3)
    bench.tend()
    assert {job.priority for job in bench.jobs(batch_id)} == {50}


def test_cancelling_keeps_what_has_finished(bench: Bench) -> None:
    batch_id = bench.make(lines(12))
    bench.tend()
    bench.serve(most=2)
    running = bench.claim()
    assert running is not None
    assert bench.ask(batch_id, "cancel")["status"] == "cancelling"
    bench.tend()

    assert bench.get(batch_id)["status"] == "cancelling"
    assert bench.claim() is None
    bench.finish(running, JobState.CANCELLED, "half")
    bench.tend()
    done = bench.get(batch_id)
    assert (done["status"], done["cancelled_at"] is not None) == ("cancelled", True)
    assert done["lines"] | {"succeeded": 2, "cancelled": 10, "total": 12} == done["lines"]
    assert [result["line"] for result in bench.content(done["output_file_id"])] == [1, 2]
    errors = bench.content(done["error_file_id"])
    assert {(error["response"], error["error"]["code"]) for error in errors} == {(None, "batch_cancelled")}
    refused = bench.caller.post(f"/v1/batches/{batch_id}/cancel")
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "batch_finished")


def test_cancelling_waits_for_no_job_that_is_being_ended(bench: Bench) -> None:
    """Who ends a job holds its row and then wants the tenant's budget, which a job cancelled before has locked here."""
    batch_id = bench.make(lines(3))
    bench.tend()
    (*_, last) = bench.jobs(batch_id)
    bench.ask(batch_id, "cancel")
    with bench.workshop.database.transaction() as ending:
        ending.execute(select(Job.id).where(Job.id == last.id).with_for_update())
        bench.tend()
        assert [job.state for job in bench.jobs(batch_id)] == ["cancelled"] * 2 + ["queued"]
    bench.tend()
    bench.tend()
    assert bench.get(batch_id)["status"] == "cancelled"


def test_a_batch_whose_time_is_over_expires(bench: Bench) -> None:
    batch_id = bench.make(lines(12))
    bench.tend()
    bench.serve(most=2)
    running = bench.claim()
    assert running is not None
    with bench.workshop.database.transaction() as session:
        session.execute(update(Batch).values(expires_at=func.now()))
        session.execute(update(Job).where(Job.state == "queued").values(state="expired", finished_at=func.now()))
    bench.tend()

    assert bench.get(batch_id)["status"] == "finalizing"
    bench.finish(running, JobState.EXPIRED)
    bench.tend()
    done = bench.get(batch_id)
    assert (done["status"], done["expired_at"] is not None) == ("expired", True)
    assert done["lines"] | {"succeeded": 2, "expired": 10} == done["lines"]
    assert {error["error"]["code"] for error in bench.content(done["error_file_id"])} == {"batch_expired"}


def test_jobs_end_with_the_batch_at_the_latest(bench: Bench) -> None:
    soon = {"model": "tiny", "input": {"prompt": "a"}, "deadline": "2020-01-01T00:00:00Z"}
    batch_id = bench.make([native(1, body=soon), native(2)], completion_window="2h")
    done = bench.run_to_end(batch_id)

    (job,) = bench.jobs(batch_id)
    assert job.deadline is not None
    assert int(job.deadline.timestamp()) == done["expires_at"]
    assert job.deadline - job.created_at < timedelta(hours=2)
    (refused,) = bench.content(done["error_file_id"])
    assert (refused["line"], refused["error"]["code"]) == (1, "validation_failed")


def test_failed_lines_alone_are_tried_again(bench: Bench) -> None:
    batch_id = bench.make(lines(9), metadata={"a": "b"})
    bench.run_to_end(batch_id, ends={3: JobState.FAILED, 8: JobState.EXPIRED})

    again = bench.ask(batch_id, "retry", {})
    assert (again["status"], again["retry_of"], again["metadata"]) == ("in_progress", batch_id, {"a": "b"})
    done = bench.run_to_end(again["id"])
    assert [result["custom_id"] for result in bench.content(done["output_file_id"])] == ["id-3", "id-8"]
    assert done["error_file_id"] is None

    one = bench.ask(batch_id, "retry", {"custom_ids": ["id-8"]})
    assert one["lines"]["total"] == 1
    for body in ({"custom_ids": ["id-1"]}, {"custom_ids": ["id-3", "none"]}):
        refused = bench.caller.post(f"/v1/batches/{batch_id}/retry", body)
        assert (refused.status_code, refused.json["error"]["code"]) == (409, "nothing_to_retry")


def test_a_key_makes_one_batch(bench: Bench) -> None:
    uploaded = bench.upload(b"{}").json["id"]
    body = {"input_file_id": uploaded, "endpoint": "/v1/jobs", "completion_window": "24h"}
    first = bench.caller.post("/v1/batches", body, Idempotency_Key="night")
    again = bench.caller.post("/v1/batches", body, Idempotency_Key="night")
    assert (again.json["id"], again.headers["Idempotent-Replayed"]) == (first.json["id"], "true")
    other = bench.caller.post("/v1/batches", body | {"priority": 1}, Idempotency_Key="night")
    assert (other.status_code, other.json["error"]["code"]) == (400, "idempotency_key_reused")


def test_the_rate_and_the_end_are_told_once_there_is_evidence(bench: Bench) -> None:
    batch_id = bench.make(lines(20))
    bench.tend()
    assert (bench.get(batch_id)["lines_per_minute"], bench.get(batch_id)["eta"]) == (None, None)
    for _ in range(2):
        bench.serve(most=WAITING)
        bench.tend()
    with bench.workshop.database.transaction() as session:
        began = func.now() - timedelta(seconds=60)
        session.execute(update(Batch).values(in_progress_at=began))
        session.execute(update(BatchLine).where(BatchLine.position.is_not(None)).values(settled_at=func.now()))

    batch = bench.get(batch_id)
    assert batch["lines_per_minute"] == pytest.approx(12, rel=0.1)
    assert batch["eta"] is not None


def test_endpoints_that_name_a_batchs_events_get_them(bench: Bench) -> None:
    asked = {"url": "http://127.0.0.1:9/hook", "events": ["batch.completed", "batch.paused"]}
    assert bench.caller.post("/v1/webhook-endpoints", asked).status_code == 201
    batch_id = bench.make(lines(1))
    bench.run_to_end(batch_id)

    with bench.workshop.database.transaction() as session:
        (delivery,) = session.scalars(select(WebhookDelivery)).all()
    assert delivery.payload["type"] == "batch.completed"
    told = delivery.payload["data"]
    assert (told["id"], told["status"], told["lines"]["succeeded"]) == (batch_id, "completed", 1)
