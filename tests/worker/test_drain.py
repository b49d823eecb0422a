"""A worker that an operator drains takes nothing more, hands back what it holds, and ends."""

import os
import signal
from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient
from penstock.app import create_app
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.jobs.states import RunOutcome
from penstock.registry.models import Worker
from penstock.settings import Settings
from penstock.workers.documents import DeploymentList, WorkerDocument, WorkerList
from penstock_worker.app import DRAINED_EXIT_CODE
from redis import Redis
from sqlalchemy import select

from tests.patience import PATIENCE_SECONDS, eventually
from tests.worker.conftest import Jobs, StartWorker

pytestmark = pytest.mark.drill

ENDLESS = {"temperature": 1.0, "seed": 5, "ignore_eos": True, "max_tokens": 900}


@pytest.fixture
def operator(settings: Settings, database: Database, redis: Redis, tenant: Tenant) -> Iterator[FlaskClient]:
    with database.transaction() as session:
        scopes = (Scope.OPERATOR,)
        _, key = create_api_key(session, tenant_id=tenant.id, name="o", scopes=scopes, environment="test")
    app = create_app(settings, database=database, redis=redis)
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    yield client
    app.extensions["penstock"].stop_streams()


@pytest.mark.usefixtures("deployment")
def test_a_drained_worker_hands_back_what_it_holds_and_ends_to_be_replaced(
    database: Database, jobs: Jobs, start_worker: StartWorker, operator: FlaskClient
) -> None:
    worker = start_worker(worker_drain_seconds=0.1, lease_seconds=60)
    (engine,) = worker.children
    os.kill(engine, signal.SIGSTOP)  # so that the job outlasts all that is asked here
    held = jobs.submit(params=ENDLESS)
    eventually(lambda: jobs.get(held).state == "running", "a running job")
    (seen,) = WorkerList.model_validate(operator.get("/v1/admin/workers").json).data
    assert (seen.pid, seen.status, seen.running_jobs) == (worker.pid, "live", 1)
    assert [(host.model_name, host.status) for host in seen.hosts] == [("tiny", "ready")]
    (deployed,) = DeploymentList.model_validate(operator.get("/v1/admin/deployments").json).data
    assert (deployed.running_jobs, deployed.ready_workers, deployed.routes) == (1, 1, ["champion"])

    answer = operator.post(f"/v1/admin/workers/{seen.id}/drain")

    asked = WorkerDocument.model_validate(answer.json)
    assert (answer.status_code, asked.status) == (202, "draining")
    eventually(lambda: jobs.get(held).state == "queued", "the job to be handed back")
    os.kill(engine, signal.SIGCONT)
    assert worker.process.wait(PATIENCE_SECONDS) == DRAINED_EXIT_CODE
    assert [run.outcome for run in jobs.runs(held)] == [RunOutcome.HANDED_BACK]
    with database.transaction() as session:
        assert session.scalars(select(Worker)).all() == []
    assert operator.post(f"/v1/admin/workers/{seen.id}/drain").status_code == 404
