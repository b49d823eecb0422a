"""Workers as operators see them, and asking one to drain."""

from datetime import timedelta
from typing import Any

import pytest
from penstock.db import Database
from penstock.registry.hosting_services import Heard, HostingReport, HostingState, heartbeat, report
from penstock.registry.models import Worker as WorkerRow
from penstock.workers.documents import DeploymentDocument, DeploymentList, WorkerDocument, WorkerList
from sqlalchemy import update

from tests.platform.api.conftest import Caller, Worker
from tests.platform.api.conftest import app as app
from tests.platform.api.conftest import caller as caller
from tests.platform.api.conftest import deployment as deployment
from tests.platform.api.conftest import make_caller as make_caller
from tests.platform.api.conftest import plain_logs as plain_logs
from tests.platform.api.conftest import worker as worker


def seen(caller: Caller) -> WorkerDocument:
    (found,) = WorkerList.model_validate(caller.get("/v1/admin/workers").json).data
    assert caller.get(f"/v1/admin/workers/{found.id}").json["id"] == found.id
    return found


def test_a_worker_tells_what_it_hosts_and_how_it_fares(caller: Caller, worker: Worker, database: Database) -> None:
    assert (seen(caller).running_jobs, seen(caller).idle_seconds) == (0, None)
    caller.submit()
    caller.submit()
    worker.claim()
    stats = {"pages_total": 200, "pages_in_use": 50}
    with database.transaction() as session:
        heartbeat(session, worker.id, claimed=True)
        report(session, worker.id, HostingReport(worker.deployment_id, HostingState.READY, 3, 1.0, stats=stats))

    found = seen(caller)
    (host,) = found.hosts
    assert (found.status, found.running_jobs, found.slots) == ("live", 1, 4)
    assert (host.model_name, host.status, host.free_slots, host.kv_usage) == ("tiny", "ready", 3, 0.25)
    assert found.idle_seconds is not None
    assert found.idle_seconds < 60
    (deployed,) = DeploymentList.model_validate(caller.get("/v1/admin/deployments").json).data
    assert (deployed.waiting_jobs, deployed.running_jobs, deployed.ready_workers) == (1, 1, 1)


def test_one_that_missed_its_heartbeats_is_silent(caller: Caller, worker: Worker, database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(WorkerRow).values(heartbeat_at=WorkerRow.heartbeat_at - timedelta(seconds=60)))
    assert (seen(caller).status, seen(caller).silent_seconds >= 60) == ("silent", True)


def test_a_drain_is_heard_at_the_next_heartbeat_and_recorded_once(
    caller: Caller, worker: Worker, database: Database
) -> None:
    with database.transaction() as session:
        assert heartbeat(session, worker.id) == Heard(drain_requested=False)
    first = caller.post(f"/v1/admin/workers/{worker.id}/drain")
    again = caller.post(f"/v1/admin/workers/{worker.id}/drain")
    assert (first.status_code, first.json["status"]) == (202, "draining")
    assert first.json["drain_requested_at"] == again.json["drain_requested_at"]
    with database.transaction() as session:
        assert heartbeat(session, worker.id) == Heard(drain_requested=True)
    (entry,) = caller.get("/v1/audit?action=worker.drain_requested").json["data"]
    assert entry["target"] == worker.id


def test_a_worker_that_nobody_knows_is_not_there(caller: Caller) -> None:
    answer = caller.post("/v1/admin/workers/wrk_none/drain")
    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


def test_where_a_version_should_be_is_said_whole_and_where_it_is_is_told(
    caller: Caller, worker: Worker, database: Database
) -> None:
    stats = {"pages_total": 200, "kv_bytes": 4096, "weight_bytes": 1024, "load_seconds": 2.5}
    with database.transaction() as session:
        report(session, worker.id, HostingReport(worker.deployment_id, HostingState.READY, 3, 1.0, stats=stats))
    path = f"/v1/admin/deployments/{worker.deployment_id}"
    found = DeploymentDocument.model_validate(caller.get(path).json)
    (host,) = found.hosts
    assert (host.worker_id, host.hostname, host.status) == (worker.id, "test", "ready")
    assert (host.kv_pages, host.kv_bytes, host.weight_bytes, host.load_seconds) == (200, 4096, 1024, 2.5)
    assert host.ready_at is not None
    assert (found.nowhere, found.placement.mode, found.placement.workers) == (None, "warm", None)

    wish = {"workers": ["big"], "replicas": 2, "kv_share": 0.25, "mode": "cold", "idle_seconds": 5}
    placed = DeploymentDocument.model_validate(caller.call("PUT", path, wish).json)
    assert placed.placement.model_dump(mode="json") == wish
    assert placed.nowhere == "no live worker has the name or label big, where it is wanted"
    assert caller.call("PUT", path, {}).json["placement"]["mode"] == "warm"
    entries = caller.get("/v1/audit?action=deployment.placed").json["data"]
    assert [entry["details"]["mode"] for entry in entries] == ["warm", "cold"]


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"kv_share": 0}, "kv_share"),
        ({"kv_share": 1.5}, "kv_share"),
        ({"replicas": -1}, "replicas"),
        ({"workers": []}, "workers"),
        ({"mode": "tepid"}, "mode"),
        ({"idle_seconds": 0}, "idle_seconds"),
        ({"where": "here"}, "where"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    caller: Caller, worker: Worker, wish: dict[str, Any], field: str
) -> None:
    answer = caller.call("PUT", f"/v1/admin/deployments/{worker.deployment_id}", wish)
    assert (answer.status_code, answer.json["field"]) == (422, field)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_deployment_that_nobody_knows_is_not_there(caller: Caller, method: str) -> None:
    answer = caller.call(method, "/v1/admin/deployments/dep_none", {} if method == "PUT" else None)
    assert (answer.status_code, answer.json["code"]) == (404, "not_found")
