"""What workers write of themselves, judged by the database's clock."""

from dataclasses import replace
from datetime import timedelta

import pytest
from penstock.clock import utc_now
from penstock.db import Database
from penstock.registry import hosting_services as hosting
from penstock.registry.hosting_services import HostingReport, HostingState, WorkerCard
from penstock.registry.models import Deployment, Hosting, Worker
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.factories import make_deployment

CARD = WorkerCard("wrk_1", "host", 7, "cpu", 4)


def fall_silent(session: Session, worker_id: str, seconds: float) -> None:
    past = Worker.heartbeat_at - timedelta(seconds=seconds)
    session.execute(update(Worker).where(Worker.id == worker_id).values(heartbeat_at=past))


def test_a_worker_registers_beats_and_leaves(database: Database) -> None:
    with database.transaction() as session:
        hosting.register_worker(session, CARD)
    with database.transaction() as session:
        worker = session.get_one(Worker, "wrk_1")
        assert (worker.hostname, worker.pid, worker.device, worker.slots, worker.draining) == (
            "host",
            7,
            "cpu",
            4,
            False,
        )
        before = worker.heartbeat_at
    with database.transaction() as session:
        assert hosting.heartbeat(session, "wrk_1", draining=True)
    with database.transaction() as session:
        worker = session.get_one(Worker, "wrk_1")
        assert worker.heartbeat_at > before
        assert worker.draining
        hosting.remove_worker(session, "wrk_1")
        assert not hosting.heartbeat(session, "wrk_1")


def test_a_beat_leaves_draining_alone_unless_told(database: Database) -> None:
    with database.transaction() as session:
        hosting.register_worker(session, CARD)
        hosting.heartbeat(session, "wrk_1", draining=True)
        hosting.heartbeat(session, "wrk_1")
        assert session.get_one(Worker, "wrk_1").draining


def test_registering_again_starts_afresh(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        hosting.register_worker(session, CARD)
        hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.READY))
        hosting.heartbeat(session, "wrk_1", draining=True)
    with database.transaction() as session:
        hosting.register_worker(session, replace(CARD, pid=8))
    with database.transaction() as session:
        worker = session.get_one(Worker, "wrk_1")
        assert (worker.pid, worker.draining) == (8, False)
        assert session.scalars(select(Hosting)).all() == []


def test_silent_workers_are_taken_away_with_what_they_hosted(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        for name in ("wrk_1", "wrk_2"):
            hosting.register_worker(session, replace(CARD, id=name))
            hosting.report(session, name, HostingReport(deployment.id, HostingState.READY))
        fall_silent(session, "wrk_1", 30)
        assert hosting.expire_dead_workers(session, 60) == []
        assert hosting.expire_dead_workers(session, 20) == ["wrk_1"]
        assert session.scalars(select(Hosting.worker_id)).all() == ["wrk_2"]


def test_only_live_workers_count(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        hosting.register_worker(session, CARD)
        hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.READY))
        assert [found.deployment_id for found in hosting.live_hostings(session)] == [deployment.id]
        assert hosting.live_hostings(session, ["dep_other"]) == []
        fall_silent(session, "wrk_1", hosting.HEARTBEAT_SECONDS + 1)
        assert hosting.live_hostings(session) == []


def test_workers_want_what_is_active_or_draining(database: Database) -> None:
    with database.transaction() as session:
        made = [make_deployment(session, version=str(number), champion=False) for number in range(3)]
        other = make_deployment(session, "other")
        for deployment, state in zip(made, ("active", "draining", "retired"), strict=True):
            deployment.state = state
        session.flush()
        assert {found.id for found in hosting.wanted_deployments(session)} == {made[0].id, made[1].id, other.id}
        assert [found.id for found in hosting.wanted_deployments(session, {"other"})] == [other.id]
        assert hosting.wanted_deployments(session, set()) == []


def test_reports_follow_one_another_in_one_row(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        hosting.register_worker(session, CARD)
        loading = HostingReport(deployment.id, HostingState.LOADING, progress=0.5)
        hosting.report(session, "wrk_1", loading)
        failed = HostingReport(deployment.id, HostingState.FAILED, error="config.json is missing", stats={"kv": 1})
        hosting.report(session, "wrk_1", failed)
    with database.transaction() as session:
        row = session.scalars(select(Hosting)).one()
        assert (row.state, row.progress, row.error, row.stats) == ("failed", 0.0, "config.json is missing", {"kv": 1})
        hosting.remove_hosting(session, "wrk_1", deployment.id)
        assert session.scalars(select(Hosting)).all() == []


def test_the_first_ready_of_all_is_kept(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
        hosting.register_worker(session, CARD)
        hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.LOADING))
        assert session.get_one(Deployment, deployment.id, populate_existing=True).first_ready_at is None
        hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.READY))
    with database.transaction() as session:
        first = session.get_one(Deployment, deployment.id).first_ready_at
        assert first is not None
        assert first <= utc_now()
    with database.transaction() as session:
        hosting.report(session, "wrk_1", HostingReport(deployment.id, HostingState.READY))
    with database.transaction() as session:
        assert session.get_one(Deployment, deployment.id).first_ready_at == first


def test_a_worker_that_was_taken_away_cannot_report(database: Database) -> None:
    with database.transaction() as session:
        deployment = make_deployment(session)
    with pytest.raises(IntegrityError), database.transaction() as session:
        hosting.report(session, "wrk_gone", HostingReport(deployment.id, HostingState.READY))
