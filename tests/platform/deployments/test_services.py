"""What each worker should have, by the rows of deployments, placements, jobs and rollouts."""

from datetime import timedelta
from typing import Any

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import AuditEntry
from penstock.clock import utc_now
from penstock.db import Database
from penstock.deployments.placement import Desired, HostingMode
from penstock.deployments.services import Wanted, nowhere, place, traffic_shares, wanted_on
from penstock.errors import NotFound
from penstock.jobs.lease import claim
from penstock.registry.hosting_services import (
    HostingReport,
    HostingState,
    WorkerCard,
    heartbeat,
    register_worker,
    report,
)
from penstock.registry.models import LANE_ID, Deployment, RoutingPolicy
from penstock.rollouts.models import Rollout
from sqlalchemy import select
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, submit_job

ACTOR = Actor(ActorKind.COMMAND, "root", "root", None, ())
COLD = Desired(mode=HostingMode.COLD, idle_seconds=60)


def register(session: Session, name: str, **others: Any) -> str:
    card = WorkerCard(f"wrk_{name}", f"host-{name}", 7, "cpu", 4, **others)
    register_worker(session, card)
    return card.id


def proven(session: Session, worker_id: str, deployment: Deployment) -> None:
    """It was ready once, on that worker, and rests there now."""
    report(session, worker_id, HostingReport(deployment.id, HostingState.READY))
    report(session, worker_id, HostingReport(deployment.id, HostingState.COLD))
    session.refresh(deployment)


def found(session: Session, worker_id: str, names: set[str] | None = None) -> dict[str, Wanted]:
    wanted = wanted_on(session, worker_id, names)
    assert wanted is not None
    return {each.deployment.id: each for each in wanted}


def put(session: Session, deployment: Deployment, desired: Desired) -> None:
    tenant = make_tenant(session)
    place(session, deployment.id, desired, ACTOR, tenant_id=tenant.id)


def test_without_a_word_every_worker_has_all_of_its_models_loaded(database: Database) -> None:
    with database.transaction() as session:
        one, other = make_deployment(session), make_deployment(session, "other")
        gone = make_deployment(session, version="0", champion=False)
        gone.state = "retired"
        workers = [register(session, "a"), register(session, "b")]
        for worker_id in workers:
            here = found(session, worker_id)
            assert here.keys() == {one.id, other.id}
            assert all(each.needed and each.traffic == 1.0 for each in here.values())
        assert found(session, workers[0], {"other"}).keys() == {other.id}


def test_a_worker_has_what_it_is_named_for_and_says_nothing_once_it_drains(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        put(session, deployment, Desired(workers=("big",)))
        small, big = register(session, "a"), register(session, "b", labels=("big",))
        assert found(session, small) == {}
        assert found(session, big).keys() == {deployment.id}
        heartbeat(session, big, draining=True)
        assert wanted_on(session, big, None) is None
        assert wanted_on(session, "wrk_nobody", None) is None


def test_a_wish_is_kept_whole_replaced_whole_and_recorded(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        put(session, deployment, Desired(("big",), 2, 0.5, HostingMode.COLD, 30.0))
        put(session, deployment, Desired(replicas=1))
        worker_id = register(session, "a")
        assert found(session, worker_id)[deployment.id].desired == Desired(replicas=1)
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [entry.action for entry in entries] == ["deployment.placed"] * 2
        assert entries[0].details["workers"] == ["big"]
        assert (entries[0].target, entries[0].details["kv_share"]) == (deployment.id, 0.5)


@pytest.mark.parametrize("identity", ["dep_none", LANE_ID])
def test_what_workers_do_not_host_cannot_be_placed(database: Database, identity: str) -> None:
    with pytest.raises(NotFound), database.transaction() as session:
        place(session, identity, Desired(), ACTOR, tenant_id=make_tenant(session).id)


def test_a_cold_one_is_needed_while_a_job_may_be_claimed_of_it(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        put(session, deployment, COLD)
        worker_id = register(session, "a")
        assert found(session, worker_id)[deployment.id].needed  # it has yet to show that it loads
        proven(session, worker_id, deployment)
        assert not found(session, worker_id)[deployment.id].needed
        job = submit_job(session, make_tenant(session))
        assert found(session, worker_id)[deployment.id].needed
        job.held = True
        session.flush()
        assert not found(session, worker_id)[deployment.id].needed
        job.held = False
        session.flush()
        assert claim(session, worker_id=worker_id, deployment_id=deployment.id, lease_seconds=5)
        assert not found(session, worker_id)[deployment.id].needed


def test_a_cold_one_is_loaded_to_take_over(database: Database) -> None:
    with database.transaction() as session:
        old, new = make_deployment(session), make_deployment(session, version="2", champion=False)
        worker_id = register(session, "a")
        put(session, new, COLD)
        proven(session, worker_id, new)
        assert not found(session, worker_id)[new.id].needed
        session.get_one(RoutingPolicy, old.model_name).incoming_id = new.id
        session.flush()
        assert found(session, worker_id)[new.id].needed


def test_both_sides_of_a_rollout_are_loaded_and_share_by_traffic(database: Database) -> None:
    with database.transaction() as session:
        old, new = make_deployment(session), make_deployment(session, version="2", champion=False)
        worker_id = register(session, "a")
        for each in (old, new):
            put(session, each, COLD)
            proven(session, worker_id, each)
        rollout = Rollout(
            id="rol_1", model_name="tiny", candidate_id=new.id, champion_id=old.id, policy={}, policy_version="v",
            seed="s", state="canary", step=0, fence=1, share=0.05, unit="job",
        )  # fmt: skip
        session.add(rollout)
        session.flush()
        here = found(session, worker_id)
        assert {name: (each.needed, each.desired.mode, each.traffic) for name, each in here.items()} == {
            old.id: (True, "warm", 0.95),
            new.id: (True, "warm", 0.05),
        }
        rollout.state = "rolled_back"
        session.flush()
        assert {(each.needed, each.desired.mode) for each in found(session, worker_id).values()} == {(False, "cold")}
        old.keep_warm_until = utc_now() + timedelta(hours=1)
        session.flush()
        here = found(session, worker_id)
        assert {name: each.desired.mode for name, each in here.items()} == {old.id: "warm", new.id: "cold"}
        assert traffic_shares(session, {"tiny"}) == {}


def test_a_deployment_that_is_wanted_nowhere_says_so(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        assert nowhere(session, deployment) == "no worker is live"
        register(session, "a")
        assert nowhere(session, deployment) is None
        put(session, deployment, Desired(workers=("big",)))
        assert nowhere(session, deployment) == "no live worker has the name or label big, where it is wanted"
