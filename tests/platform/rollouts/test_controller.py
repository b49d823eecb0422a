"""The controller on a real PostgreSQL: it judges what jobs showed, follows through, and loses nothing on the way."""

import threading
import time
from datetime import timedelta

import pytest
import structlog
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.metrics import RolloutMetrics
from penstock.registry.models import Deployment, Hosting
from penstock.rollouts.consequences import NOT_READY
from penstock.rollouts.controller import BUSY_SECONDS, IDLE_SECONDS, Controller
from penstock.rollouts.evidence import EVIDENCE
from penstock.rollouts.ledger import ledger
from penstock.rollouts.models import ControllerLease, Decision, GateResult, Rollout
from penstock.rollouts.policy import Canary, OnTimeout, Policy, Step
from penstock.rollouts.states import State
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_rollout, make_tenant, make_worker, submit_job

STEP = Step(share=0.5, error_margin=0.4, slow_margin=0.4, minimum_jobs=1, timeout=60, on_timeout=OnTimeout.ROLLBACK)
POLICY = Policy(offline=None, shadow=None, latency=None, canary=Canary(steps=(STEP,)))


class Trial:
    """A rollout of a model of its own, with both versions ready on a worker each."""

    def __init__(self, session: Session, name: str = "tiny") -> None:
        self.name, self.tenant = name, make_tenant(session)
        self.champion = make_deployment(session, name)
        self.candidate = make_deployment(session, name, version="2", champion=False)
        self.workers = {each.id: make_worker(session, each).id for each in (self.champion, self.candidate)}
        self.rollout_id = make_rollout(session, self.champion, self.candidate, policy=POLICY).id

    def serve(self, database: Database, deployment: Deployment, state: JobState, most: int = 100) -> int:
        """The version's worker ends up to so many of its waiting jobs; how many there were."""
        error = {"code": "logits_not_finite", "message": "no number"} if state is JobState.FAILED else None
        with database.transaction() as session:
            worker = self.workers[deployment.id]
            claims = lease.claim_all(
                session, worker_id=worker, deployment_id=deployment.id, lease_seconds=30, most=most
            )
            ends = [(Held(each.job.id, each.fence), Finish(state, [], 2, error=error)) for each in claims]
            lease.finish_all(session, ends)
        return len(claims)

    def submit(self, database: Database, count: int) -> None:
        with database.transaction() as session:
            for _ in range(count):
                submit_job(session, self.tenant, model=self.name)

    def rollout(self, database: Database) -> Rollout:
        with database.transaction() as session:
            return session.get_one(Rollout, self.rollout_id)


@pytest.fixture
def trial(database: Database) -> Trial:
    with database.transaction() as session:
        return Trial(session)


@pytest.fixture
def controller(database: Database) -> Controller:
    return Controller(database, RolloutMetrics(CollectorRegistry()))


def test_harm_is_found_and_stopped_between_two_submits(
    database: Database, trial: Trial, controller: Controller
) -> None:
    """Every job of the candidate fails: those that wait for it when that is proven are served by the champion."""
    served = {"1": 0, "2": 0}
    for _ in range(20):
        trial.submit(database, 4)
        served["1"] += trial.serve(database, trial.champion, JobState.SUCCEEDED)
        served["2"] += trial.serve(database, trial.candidate, JobState.FAILED, most=1)
        assert controller.turn()
        if trial.rollout(database).state == State.ROLLED_BACK:
            break
    assert trial.rollout(database).state == State.ROLLED_BACK
    with database.transaction() as session:
        waiting = set(session.scalars(select(Job.model_version).where(Job.state == JobState.QUEUED)))
        assert waiting == {"1"}
        (decision,) = ledger(session, trial.rollout_id)
        evidence = EVIDENCE.validate_python(decision.evidence)
        assert evidence.failures.candidate == evidence.failures.total == served["2"]
        assert decision.jobs["failed"]["count"] == served["2"]
        assert decision.actor_name == "the controller of rollouts"


def test_proof_promotes_and_moves_the_route(database: Database, trial: Trial, controller: Controller) -> None:
    with database.transaction() as session:
        session.execute(update(Deployment).values(first_ready_at=func.now()))
    for _ in range(20):
        trial.submit(database, 10)
        for version in (trial.champion, trial.candidate):
            trial.serve(database, version, JobState.SUCCEEDED)
        controller.turn()
        if trial.rollout(database).state == State.PROMOTED:
            break
    assert trial.rollout(database).state == State.PROMOTED
    trial.submit(database, 3)
    assert trial.serve(database, trial.candidate, JobState.SUCCEEDED) == 3


def test_a_turn_that_is_broken_off_counts_nothing(
    database: Database, trial: Trial, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.submit(database, 10)
    served = trial.serve(database, trial.candidate, JobState.FAILED, most=1)

    def dies(*_: object, **__: object) -> None:
        raise SystemError("the process dies here")

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr("penstock.rollouts.services.remember", dies)  # after evidence was gathered and kept
        controller.turn()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["rollouts.gate_failed"]
    with database.transaction() as session:
        assert session.scalars(select(GateResult)).all() == []
    controller.turn()
    controller.turn()
    with database.transaction() as session:
        (kept,) = session.scalars(select(GateResult)).all()
        assert EVIDENCE.validate_python(kept.evidence).failures.total == served


def test_what_fails_for_one_rollout_holds_up_no_other(database: Database, trial: Trial, controller: Controller) -> None:
    with database.transaction() as session:
        session.get_one(Rollout, trial.rollout_id).policy = {"canary": "none that anybody can read"}
        other = Trial(session, "other")
    with structlog.testing.capture_logs() as logs:
        assert controller.turn()
    assert [(line["event"], line["rollout"]) for line in logs if "rollout" in line] == [
        ("rollouts.gate_failed", trial.rollout_id)
    ]
    with database.transaction() as session:
        assert session.scalars(select(GateResult.rollout_id)).all() == [other.rollout_id]


def test_a_gate_s_time_is_the_database_s(database: Database, trial: Trial, controller: Controller) -> None:
    controller.turn()
    assert trial.rollout(database).state == State.CANARY
    with database.transaction() as session:
        session.get_one(Rollout, trial.rollout_id).entered_at = utc_now() - timedelta(seconds=61)
    controller.turn()
    assert trial.rollout(database).state == State.ROLLED_BACK
    with database.transaction() as session:
        judgement = ledger(session, trial.rollout_id)[-1].judgement
        assert judgement is not None
        assert judgement["reasons"][0]["name"] == "timeout"


def test_the_share_waits_until_the_version_is_ready(database: Database, trial: Trial, controller: Controller) -> None:
    mine = update(Hosting).where(Hosting.deployment_id == trial.candidate.id)
    for state, share, note in (("loading", 0.0, f"{NOT_READY}: loading"), ("ready", 0.5, None)):
        with database.transaction() as session:
            session.execute(mine.values(state=state))
        controller.turn()
        rollout = trial.rollout(database)
        assert (rollout.share, rollout.note) == (share, note)


def test_a_version_that_cannot_be_loaded_ends_its_rollout(
    database: Database, trial: Trial, controller: Controller
) -> None:
    with database.transaction() as session:
        mine = update(Hosting).where(Hosting.deployment_id == trial.candidate.id)
        session.execute(mine.values(state="failed", error="no room for 3 GiB"))
    controller.turn()
    assert trial.rollout(database).state == State.ROLLED_BACK
    with database.transaction() as session:
        (decision,) = ledger(session, trial.rollout_id)
        assert decision.reason == "version 2 cannot be loaded: no room for 3 GiB"


def test_of_several_one_acts(database: Database, trial: Trial, controller: Controller) -> None:
    other = Controller(database, RolloutMetrics(CollectorRegistry()))
    assert controller.turn()
    assert not other.turn()
    assert (controller.attempt(), other.attempt()) == (BUSY_SECONDS, IDLE_SECONDS)


def test_whoever_slept_through_its_lead_writes_nothing(
    database: Database, trial: Trial, controller: Controller
) -> None:
    controller.turn()
    with database.transaction() as session:
        session.execute(update(ControllerLease).values(expires_at=func.now()))
    other = Controller(database, RolloutMetrics(CollectorRegistry()))
    assert other.turn()
    with structlog.testing.capture_logs() as logs:
        assert controller.attempt() == IDLE_SECONDS
        assert not controller.turn(), "it stands in line again"
    assert [line["event"] for line in logs] == ["rollouts.lead_lost"]
    with database.transaction() as session:
        assert session.scalars(select(Decision)).all() == []


def test_it_gives_the_lead_back_when_it_stops(database: Database, trial: Trial, controller: Controller) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,))
    thread.start()
    while not _judged(database):
        time.sleep(0.01)  # the test's own time limit is the only one
    stop.set()
    thread.join()
    assert Controller(database, RolloutMetrics(CollectorRegistry())).turn()


def _judged(database: Database) -> bool:
    with database.transaction() as session:
        return session.scalar(select(GateResult.rollout_id)) is not None


def test_metrics_say_where_rollouts_stand(database: Database, trial: Trial) -> None:
    registry = CollectorRegistry()
    controller = Controller(database, RolloutMetrics(registry))
    controller.turn()
    told = generate_latest(registry).decode()
    assert 'penstock_rollout_state{model="tiny",state="canary"} 1.0' in told
    assert 'penstock_rollout_judgements_total{verdict="hold"} 1.0' in told
