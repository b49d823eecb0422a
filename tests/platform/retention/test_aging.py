"""What is past its time goes, kind by kind, and nothing else does."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.batches.models import Batch
from penstock.registry.models import Deployment, Worker
from penstock.settings import Settings
from penstock.usage.models import UsageEntry
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError

from tests.factories import make_worker
from tests.platform.api.conftest import Caller
from tests.platform.batches.conftest import native
from tests.platform.retention.conftest import MARK, Possessions, Stage, days_ago


@pytest.fixture
def old(stage: Stage) -> Possessions:
    """What the caller's tenant has since 40 days."""
    with days_ago(stage.database, 40):
        return stage.furnish(stage.caller)


def ids_of(caller: Caller) -> list[str]:
    return [job["id"] for job in caller.get("/v1/jobs?limit=100").json["data"]]


def usage_of(caller: Caller) -> list[Any]:
    return [caller.get(f"/v1/usage?by={by}").json["data"] for by in ("day,tag", "model,version,key")]


def test_old_jobs_and_batches_go_and_young_ones_stay(stage: Stage, old: Possessions) -> None:
    young = stage.run_job(stage.caller, mark="young")
    usage = usage_of(stage.caller)
    stage.set(stage.caller, retain_jobs_days=41)
    stage.sweep()
    assert len(ids_of(stage.caller)) == 7

    stage.set(stage.caller, retain_jobs_days=39)
    stage.sweep()

    assert ids_of(stage.caller) == [young]
    assert stage.caller.get(f"/v1/responses/{old.response_id}").status_code == 404
    assert stage.caller.get(f"/v1/batches/{old.batch_id}").status_code == 404
    assert usage_of(stage.caller) == usage
    left = stage.traces(MARK)
    # the tags of usage, the tenant's people and endpoints, events of its batches, and files have their own time
    assert set(left) <= {"usage_day", "user", "webhook_endpoint", "feed_event", "webhook_delivery", "files",
                         "audit_entry", "webhook_attempt"}  # fmt: skip
    assert not any(old.job_id in row for rows in left.values() for row in rows)
    assert stage.metrics.retention_deleted.labels("jobs")._value.get() == 6 + 3 + 1


def test_the_feed_begins_later_and_its_ids_go_on(stage: Stage, old: Possessions) -> None:
    stage.run_job(stage.caller, mark="young")
    stage.place()
    events = stage.caller.get("/v1/events?limit=1000").json["data"]
    stage.set(stage.caller, retain_events_days=39)
    stage.sweep()

    left = stage.caller.get("/v1/events?limit=1000").json["data"]
    assert left == events[-3:]
    assert [event["type"] for event in left] == ["job.queued", "job.running", "job.succeeded"]
    assert stage.caller.get(f"/v1/events?after={events[0]['id']}").json["data"] == left
    assert len(stage.caller.get(f"/v1/jobs/{old.job_id}").json["timeline"]) == 3  # a job keeps its own events


def test_deliveries_go_once_they_have_ended(stage: Stage, old: Possessions) -> None:
    with days_ago(stage.database, 40):
        waiting = stage.caller.submit(webhook={"url": "http://127.0.0.1:9/own"})
        stage.caller.post(f"/v1/jobs/{waiting}/cancel")
    stage.set(stage.caller, retain_deliveries_days=39)
    stage.sweep()

    left = stage.caller.get("/v1/webhook-deliveries").json["data"]
    assert [(each["job_id"], each["status"]) for each in left] == [(waiting, "waiting"), (waiting, "waiting")]
    assert stage.rows()["webhook_attempt"] == []
    assert stage.caller.get(f"/v1/jobs/{old.job_id}").status_code == 200


def test_files_go_with_their_bytes_but_for_those_that_a_batch_reads(stage: Stage, old: Possessions) -> None:
    bench = stage.bench
    with days_ago(stage.database, 40):
        reading = bench.make([{"custom_id": "1", "method": "POST", "url": "/v1/jobs", "body": {}}])
    kept = bench.upload(b"young").json["id"]
    stage.set(stage.caller, retain_files_days=39, retain_jobs_days=39)
    stage.sweep()

    held = bench.get(reading)["input_file_id"]
    assert {file["id"] for file in stage.caller.get("/v1/files").json["data"]} == {held, kept}
    assert {path.name for path in stage.files.rglob("file_*")} == {held, kept}
    for file_id in old.file_ids:
        assert stage.caller.get(f"/v1/files/{file_id}").status_code == 404


def test_usage_is_added_up_by_the_day_exactly_once(stage: Stage, old: Possessions) -> None:
    stage.run_job(stage.caller)
    before = usage_of(stage.caller)
    stage.set(stage.caller, retain_usage_days=39)
    stage.sweep()
    stage.sweep()

    with stage.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(UsageEntry)) == 1
    assert usage_of(stage.caller) == before
    assert len(ids_of(stage.caller)) == 7  # the jobs themselves have their own time
    stage.set(stage.caller, retain_jobs_days=39)
    stage.sweep()
    assert usage_of(stage.caller) == before


def test_a_day_counts_whole_at_its_first_moment(stage: Stage) -> None:
    job_id = stage.run_job(stage.caller)
    with stage.database.transaction() as session:
        session.execute(update(UsageEntry).values(created_at=text("'2024-05-05 13:00+00'")))
    stage.caller.call("DELETE", f"/v1/jobs/{job_id}")

    def jobs(query: str) -> int:
        return sum(row["jobs"] for row in stage.caller.get(f"/v1/usage?by=day&{query}").json["data"])

    assert jobs("since=2024-05-05T00:00:00Z&until=2024-05-05T12:00:00Z") == 1
    assert jobs("since=2024-05-05T12:00:00Z") == 0
    assert jobs("until=2024-05-05T00:00:00Z") == 0


def test_lines_of_a_batch_that_goes_on_stay(stage: Stage) -> None:
    with days_ago(stage.database, 40):
        batch_id = stage.bench.make([native(1), native(2)])
        stage.bench.tend()
        stage.bench.serve(most=1)
    stage.set(stage.caller, retain_jobs_days=30)
    stage.sweep()
    assert len(stage.caller.get(f"/v1/jobs?batch={batch_id}").json["data"]) == 2

    assert stage.bench.run_to_end(batch_id)["request_counts"]["completed"] == 2
    with stage.database.transaction() as session:
        session.execute(update(Batch).values(finished_at=func.now()))
    stage.sweep()
    assert len(stage.caller.get(f"/v1/jobs?batch={batch_id}").json["data"]) == 1


def test_a_tenants_days_go_before_the_installations(
    stage: Stage, make_caller: Any, settings: Settings, redis: Any
) -> None:
    longer, shorter, usual = (make_caller() for _ in range(3))
    with days_ago(stage.database, 20):
        for caller in (longer, shorter, usual):
            stage.run_job(caller)
    stage.set(longer, retain_jobs_days=25)
    stage.set(shorter, retain_jobs_days=5)

    stage.sweep()
    assert [len(ids_of(caller)) for caller in (longer, shorter, usual)] == [1, 0, 1]
    for days, left in ((22, [1, 0, 1]), (10, [1, 0, 0])):
        changed = settings.model_copy(update={"retain_jobs_days": days})
        type(stage.sweeper)(stage.database, redis, changed, stage.metrics).sweep(threading.Event())
        assert [len(ids_of(caller)) for caller in (longer, shorter, usual)] == left


def test_what_another_process_has_locked_is_passed_over(stage: Stage, old: Possessions) -> None:
    stage.set(stage.caller, retain_jobs_days=39)
    with stage.database.transaction() as session:
        session.execute(text("SELECT 1 FROM job WHERE id = :id FOR UPDATE"), {"id": old.job_id})
        stage.sweep()
    assert ids_of(stage.caller) == [old.job_id]
    stage.sweep()
    assert ids_of(stage.caller) == []


def test_a_sweep_stops_between_two_chunks(stage: Stage, old: Possessions) -> None:
    stage.set(stage.caller, retain_jobs_days=39)
    stop = threading.Event()
    stop.set()
    stage.sweeper.sweep(stop)
    assert len(ids_of(stage.caller)) == 6
    stage.sweeper.run(stop)  # returns


def test_a_worker_that_was_killed_is_forgotten_after_a_day(stage: Stage) -> None:
    with stage.database.transaction() as session:
        deployment = session.get_one(Deployment, stage.bench.deployment_id)
        silent = {hours: make_worker(session, deployment).id for hours in (23, 25)}
        for hours, worker_id in silent.items():
            past = func.now() - timedelta(hours=hours)
            session.execute(update(Worker).where(Worker.id == worker_id).values(heartbeat_at=past))

    stage.sweep()

    with stage.database.transaction() as session:
        assert set(session.scalars(select(Worker.id))) == {stage.bench.worker_id, silent[23]}


@pytest.mark.parametrize("days", [0, -1, 36_501, "7"])
def test_days_that_make_no_sense_are_refused(stage: Stage, days: Any) -> None:
    path = f"/v1/admin/tenants/{stage.caller.tenant_id}"
    assert stage.operator.call("PATCH", path, {"retain_jobs_days": days}).status_code == 422
    with pytest.raises(IntegrityError), stage.database.transaction() as session:
        session.execute(update(Tenant).values(retain_files_days=0))
