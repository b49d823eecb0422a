"""A real worker with room for one of two versions: a cold one comes when a job waits, and leaves for another."""

from pathlib import Path
from typing import Any

from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.deployments.placement import Desired, HostingMode
from penstock.deployments.services import place
from penstock.jobs.standing import Blocker, standing_of
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment, Hosting
from penstock.settings import Settings
from penstock_worker.hosting import models_of
from sqlalchemy import select

from tests.patience import eventually
from tests.worker.conftest import START_SECONDS, Jobs, StartWorker, deploy, is_alive

ROOM_FOR_ONE = 12_000_000  # bytes: 3.7 million for weights, 2.7 for steps, 2.2 for K and V of the longest sequence
SHORT = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}


def make_cold(database: Database, tenant: Tenant, deployment: Deployment) -> None:
    actor = Actor(ActorKind.COMMAND, "root", "root", None, ())
    with database.transaction() as session:
        place(session, deployment.id, Desired(mode=HostingMode.COLD), actor, tenant_id=tenant.id)


def hosting_of(database: Database, deployment: Deployment) -> Hosting | None:
    with database.transaction() as session:
        return session.scalars(select(Hosting).where(Hosting.deployment_id == deployment.id)).one_or_none()


def test_a_version_that_rests_comes_for_a_job_and_another_makes_way(
    database: Database, tenant: Tenant, jobs: Jobs, start_worker: StartWorker, model_folder: Path
) -> None:
    first, second = deploy(database, model_folder), deploy(database, model_folder, version="2")
    make_cold(database, tenant, first)
    make_cold(database, tenant, second)
    with database.transaction() as session:
        session.merge(second).first_ready_at = utc_now()  # it has shown that it loads
    worker = start_worker(worker_memory_bytes=ROOM_FOR_ONE, worker_slots=4, engine_kv_bytes=2**26)
    (engine,) = worker.children

    def settled(deployment: Deployment, state: str) -> dict[str, Any] | None:
        found = hosting_of(database, deployment)
        assert found is None or found.error is None, found.error
        return found.stats | {"there": True} if found is not None and found.state == state else None

    alone = eventually(lambda: settled(first, "ready"), "the first version")
    assert alone["kv_bytes"] + 6_400_000 < ROOM_FOR_ONE  # what was set, cut down to what weights and steps leave
    assert alone["weight_bytes"] > 3_500_000
    assert alone["resident_bytes"] > alone["weight_bytes"]
    assert "switch_seconds" not in alone
    assert eventually(lambda: settled(second, "cold"), "the second version's rest") == {"there": True}

    job_id = jobs.submit(model="tiny:2", params=SHORT)
    with database.transaction() as session:
        standing = standing_of(session, jobs.get(job_id))
        assert standing is None or standing.blocker in (Blocker.COLD, Blocker.LOADING), standing
    came = eventually(lambda: settled(second, "ready"), "the second version", START_SECONDS)
    assert came["switch_seconds"] > 0
    assert not is_alive(engine)
    assert eventually(lambda: settled(first, "cold"), "the first version's rest") == {"there": True}
    job = jobs.finished(job_id)
    assert (job.state, job.model_version) == (JobState.SUCCEEDED, "2")
    assert len(worker.children) == 1


def test_a_worker_says_which_models_it_is_set_up_for(settings: Settings) -> None:
    assert models_of(settings) is None
    assert models_of(settings.model_copy(update={"worker_models": " b, a ,,b"})) == ("a", "b")
    assert models_of(settings.model_copy(update={"worker_models": "a,*"})) is None
