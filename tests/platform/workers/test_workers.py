"""Workers as operators see them, and asking one to drain."""

from datetime import timedelta

from penstock.db import Database
from penstock.registry.hosting_services import Heard, HostingReport, HostingState, heartbeat, report
from penstock.registry.models import Worker as WorkerRow
from penstock.workers.documents import DeploymentList, WorkerDocument, WorkerList
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
