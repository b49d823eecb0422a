"""Erasing a tenant leaves nothing of it anywhere, whatever comes in between, and leaves its neighbour alone."""

from collections.abc import Callable
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Base
from penstock.errors import ServiceUnavailable
from penstock.events.services import publish
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.quotas.counters import Counters
from penstock.quotas.policies import Policy
from penstock.retention.erasure import Erasure
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from tests.platform.api.conftest import Caller
from tests.platform.retention.conftest import MARK, Stage


def erase(stage: Stage, tenant_id: str) -> Any:
    assert stage.operator.post(f"/v1/admin/tenants/{tenant_id}/suspend").status_code == 200
    return stage.operator.call("DELETE", f"/v1/admin/tenants/{tenant_id}")


def status(stage: Stage, tenant_id: str) -> int:
    code: int = stage.operator.get(f"/v1/admin/tenants/{tenant_id}").status_code
    return code


def test_nothing_is_left_of_an_erased_tenant(stage: Stage, make_caller: Callable[..., Caller]) -> None:
    gone, stays = stage.caller, make_caller()
    kept = stage.furnish(stays, "the-neighbours")
    stage.furnish(gone)
    deleted = stage.run_job(gone)
    assert gone.call("DELETE", f"/v1/jobs/{deleted}").status_code == 204  # so that there are totals of usage
    gone.submit(input={"prompt": MARK})
    unfinished = stage.bench.make([{"custom_id": MARK, "method": "POST", "url": "/v1/jobs", "body": {}}])
    Counters(stage.redis).spend(gone.tenant_id, Policy("requests", 5, 60), 1)
    with_traces = {name for name, hits in stage.traces(gone.tenant_id, MARK).items() if hits}
    elsewhere = {"deployment", "hosting", "outbox_message", "placement", "price", "routing_policy", "worker"}
    # Counts of models, not words of tenants.
    elsewhere |= {
        "assigned_unit",
        "controller_lease",
        "decision",
        "gate_point",
        "gate_result",
        "metric_point",
        "metric_progress",
        "replay",
        "rollout",
        "rollout_policy",
    }
    of_jobs_alone = {
        "assignment",
        "bulk_item",
        "comparison",
        "compression",
        "job_run",
        "offline_evaluation",
    }  # which hold no word of a tenant's
    tables = {table.name for table in Base.metadata.sorted_tables} - elsewhere - of_jobs_alone
    assert with_traces == tables | {"redis", "files"}, "give the tenant something of the new table as well"
    neighbours = stage.traces(stays.tenant_id, "the-neighbours")

    answer = erase(stage, gone.tenant_id)
    assert (answer.status_code, answer.json["erasing_since"] is not None) == (202, True)
    assert stage.operator.call("DELETE", f"/v1/admin/tenants/{gone.tenant_id}").json == answer.json
    resumed = stage.operator.post(f"/v1/admin/tenants/{gone.tenant_id}/resume")
    assert (resumed.status_code, resumed.json["code"]) == (409, "tenant_being_erased")
    assert status(stage, gone.tenant_id) == 200
    stage.sweep()

    assert status(stage, gone.tenant_id) == 404
    left = stage.traces(gone.tenant_id, MARK)
    assert set(left) == {"audit_entry"}
    (entry,) = stage.operator.get(f"/v1/admin/audit?tenant={gone.tenant_id}").json["data"]
    assert (entry["action"], entry["target"], entry["details"]) == ("tenant.erased", gone.tenant_id, {})
    assert len(left["audit_entry"]) == 1
    assert gone.get("/v1/jobs").status_code == 401
    assert stage.traces(stays.tenant_id, "the-neighbours") == neighbours
    assert stays.get(f"/v1/jobs/{kept.job_id}").status_code == 200
    assert unfinished not in str(stage.rows())


def test_only_a_suspended_tenant_is_erased(stage: Stage) -> None:
    tenant_id = stage.caller.tenant_id
    refused = stage.operator.call("DELETE", f"/v1/admin/tenants/{tenant_id}")
    assert (refused.status_code, refused.json["code"]) == (409, "tenant_not_suspended")
    assert stage.operator.call("DELETE", "/v1/admin/tenants/ten_absent").status_code == 404
    stage.sweep()
    assert stage.caller.get("/v1/jobs").status_code == 200


def test_a_job_that_runs_is_stopped_and_then_goes(stage: Stage) -> None:
    job_id = stage.caller.submit(input={"prompt": MARK})
    held = stage.bench.claim()
    assert held is not None
    erase(stage, stage.caller.tenant_id)
    stage.sweep()
    with stage.database.transaction() as session:
        assert session.get_one(Job, job_id).cancel_requested_at is not None

    stage.bench.finish(held, JobState.CANCELLED)
    stage.sweep()
    assert status(stage, stage.caller.tenant_id) == 404
    assert set(stage.traces(stage.caller.tenant_id, MARK)) == {"audit_entry"}


def erasure_of(stage: Stage) -> Erasure:
    workshop = stage.bench.workshop
    return Erasure(stage.database, workshop.journal, Counters(stage.redis), workshop.storage)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_another_process_goes_on_where_one_ended(stage: Stage, steps: int) -> None:
    stage.furnish(stage.caller)
    tenant_id = stage.caller.tenant_id
    erase(stage, tenant_id)
    one = erasure_of(stage)
    for _ in range(steps):
        one.step(tenant_id)

    stage.sweep()
    assert status(stage, tenant_id) == 404
    assert set(stage.traces(tenant_id, MARK)) == {"audit_entry"}


def test_a_storage_that_does_not_answer_keeps_the_tenant_from_going(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.furnish(stage.caller)
    erase(stage, stage.caller.tenant_id)

    def away(*_: Any) -> None:
        raise ServiceUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr("penstock.files.storage.FileStorage.delete", away)
        while erasure_of(stage).step(stage.caller.tenant_id):
            pass
    assert status(stage, stage.caller.tenant_id) == 200
    stage.sweep()
    assert status(stage, stage.caller.tenant_id) == 404
    assert set(stage.traces(stage.caller.tenant_id, MARK)) == {"audit_entry"}


def test_what_comes_in_late_goes_in_the_next_round(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant_id = stage.caller.tenant_id
    erase(stage, tenant_id)
    erasure = erasure_of(stage)
    monkeypatch.setattr(erasure, "_delete_rows", lambda _: False)  # all rows were gone
    with stage.database.transaction() as session:
        publish(session, tenant_id=tenant_id, event_type="batch.completed", data={"note": MARK})
    assert not erasure.step(tenant_id)
    assert status(stage, tenant_id) == 200

    stage.sweep()
    assert status(stage, tenant_id) == 404


def test_the_database_lets_no_tenant_be_erased_that_is_not_suspended(stage: Stage) -> None:
    with pytest.raises(IntegrityError), stage.database.transaction() as session:
        session.execute(update(Tenant).values(erasing_since=Tenant.created_at))
