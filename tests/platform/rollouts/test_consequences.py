"""What a move means, on a real PostgreSQL: where new jobs go, where those go that wait, and what is written down."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import LeaseLost, RolloutMoveRefused
from penstock.fairness.models import FairShare
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Finish, Held, Progress
from penstock.jobs.models import Event, Job, JobJournal, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.metrics import RolloutMetrics
from penstock.outbox.models import OutboxMessage
from penstock.registry.models import Deployment, Hosting, RoutingPolicy
from penstock.rollouts import consequences, services, stragglers
from penstock.rollouts.consequences import send_back
from penstock.rollouts.controller import BUSY_SECONDS, Controller
from penstock.rollouts.lead import Lead, take
from penstock.rollouts.ledger import ledger
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy, StartedJobs
from penstock.rollouts.rerouting import Way, reroute
from penstock.rollouts.states import State
from penstock.rollouts.stragglers import Left, sweep
from penstock.webhooks.models import WebhookDelivery
from prometheus_client import CollectorRegistry
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_rollout, make_tenant, make_worker, submit_job

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
RESTART = Policy(offline=None, shadow=None, started_jobs=StartedJobs.RESTART)
TOKEN = JournalEntry(0, 0, 5, "hi", None, 1)


class Died(Exception):
    """A process that ends in the midst of a transaction."""


class Scene:
    """A model with two versions, both ready on a worker, in a canary at one half; and what happens to its jobs."""

    def __init__(self, session: Session, **rollout: Any) -> None:
        self.champion = make_deployment(session)
        self.candidate = make_deployment(session, version="2", champion=False)
        self.workers = [make_worker(session, each).id for each in (self.champion, self.candidate)]
        self.rollout_id = make_rollout(session, self.champion, self.candidate, **rollout).id
        self.tenant: Tenant = make_tenant(session)

    def submit(self, session: Session, count: int = 12, **body: Any) -> list[Job]:
        return [submit_job(session, self.tenant, **body) for _ in range(count)]

    def tried(self, jobs: Sequence[Job]) -> list[str]:
        """Those that the candidate was given."""
        return [job.id for job in jobs if job.deployment_id == self.candidate.id]

    def claim(self, session: Session) -> Held:
        """The candidate's worker takes its next job."""
        claim = lease.claim(session, worker_id=self.workers[1], deployment_id=self.candidate.id, lease_seconds=30)
        assert claim is not None
        return Held(claim.job.id, claim.fence)

    def claimed(self, database: Database, deployment: Deployment, most: int) -> set[str]:
        """What a worker of the deployment takes that has room for `most`."""
        with database.transaction() as session:
            claims = lease.claim_all(
                session, worker_id=self.workers[0], deployment_id=deployment.id, lease_seconds=30, most=most
            )
        return {claim.job.id for claim in claims}


@pytest.fixture
def scene(database: Database) -> Scene:
    with database.transaction() as session:
        return Scene(session)


def roll_back(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        services.roll_back(session, scene.rollout_id, ANN, "it sings")


def where(database: Database, job_ids: Sequence[str]) -> set[str]:
    """The versions that these jobs are to be served by."""
    with database.transaction() as session:
        return set(session.scalars(select(Job.model_version).where(Job.id.in_(job_ids))))


def events(database: Database, job_id: str) -> list[str]:
    with database.transaction() as session:
        found = select(Event.number, Event.type).where(Event.job_id == job_id).order_by(Event.number)
        numbered = session.execute(found).all()
    assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1))
    return [kind for _, kind in numbered]


def test_a_rollback_takes_all_that_waits_along(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        jobs = scene.submit(session)
        named = submit_job(session, scene.tenant, model="tiny@champion")
        session.execute(delete(OutboxMessage))
    tried = scene.tried(jobs)
    assert 0 < len(tried) < len(jobs)
    roll_back(database, scene)
    assert where(database, [job.id for job in (*jobs, named)]) == {"1"}
    with database.transaction() as session:
        moved = session.get_one(Job, tried[0])
        assert moved.deployment_id == scene.champion.id
        assert (moved.state, moved.prompt_tokens) == ("queued", 2)
        assert moved.routing == {
            "rule": "rerouted",
            "rollout": scene.rollout_id,
            "version": "1",
            "from": "2",
            "reason": "the rollout of version 2 was rolled back",
        }
        rung = session.scalars(select(OutboxMessage.payload).where(OutboxMessage.topic == "doorbell")).all()
        assert rung == [{"deployment_id": scene.champion.id, "jobs": len(tried + scene.tried([named]))}]
    assert events(database, tried[0]) == ["job.queued", "job.rerouted"]
    with database.transaction() as session:
        assert {job.model_version for job in scene.submit(session)} == {"1"}, "the candidate gets nothing more"


def test_a_tenant_that_comes_to_the_champion_takes_its_turn_there(database: Database) -> None:
    """Its counter is lifted to that of those who wait there already: what it was owed elsewhere is no credit."""
    with database.transaction() as session:
        scene = Scene(session, share=1.0)
        other = make_tenant(session)
        submit_job(session, other, model="tiny:1")
        session.get_one(FairShare, (other.id, scene.champion.id)).charged = 700
        scene.submit(session, 2)
    roll_back(database, scene)
    with database.transaction() as session:
        assert session.get_one(FairShare, (scene.tenant.id, scene.champion.id)).charged == 700


def test_who_named_the_version_gets_it(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        session.get_one(Deployment, scene.candidate.id).first_ready_at = utc_now()
        session.get_one(RoutingPolicy, "tiny").challenger_id = scene.candidate.id
        session.flush()
        named = [submit_job(session, scene.tenant, model=model).id for model in ("tiny:2", "tiny@challenger")]
    roll_back(database, scene)
    assert where(database, named) == {"2"}


def test_nothing_happens_by_halves(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
    with suppress(Died), database.transaction() as session:
        services.roll_back(session, scene.rollout_id, ANN)
        raise Died
    assert where(database, tried) == {"2"}
    with database.transaction() as session:
        assert session.get_one(Rollout, scene.rollout_id).state == "canary"
        assert ledger(session, scene.rollout_id) == []


def test_what_has_begun_is_finished_by_the_version_that_began_it(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        scene.submit(session)
        running, given_back, silent = (scene.claim(session) for _ in range(3))
        for held, entries in ((given_back, [TOKEN]), (silent, [])):
            lease.checkpoint(session, [Progress(held, entries, None)] if entries else [])
            lease.hand_back(session, held, RunOutcome.CRASHED, "it fell over", max_own_crashes=3)
    roll_back(database, scene)
    assert where(database, [running.job_id, given_back.job_id]) == {"2"}
    assert where(database, [silent.job_id]) == {"1"}, "nothing of it is kept"
    with database.transaction() as session:
        assert lease.finish(session, running, Finish(JobState.SUCCEEDED, [TOKEN], 2)).state == "succeeded"


def test_or_begins_anew_where_the_policy_says_so(database: Database) -> None:
    with database.transaction() as session:
        scene = Scene(session, policy=RESTART)
        scene.submit(session)
        running, given_back = (scene.claim(session) for _ in range(2))
        lease.checkpoint(session, [Progress(held, [TOKEN], 0.1) for held in (running, given_back)])
        lease.hand_back(session, given_back, RunOutcome.CRASHED, "it fell over", max_own_crashes=3)
    roll_back(database, scene)
    both = [running.job_id, given_back.job_id]
    assert where(database, both) == {"1"}
    with database.transaction() as session:
        for job in session.scalars(select(Job).where(Job.id.in_(both))):
            assert (job.state, job.void_to, job.first_token_at, job.lease_holder) == ("queued", 1, None, None)
        assert session.scalars(select(JobJournal).where(JobJournal.job_id.in_(both))).all() == []
        run = session.get_one(JobRun, (running.job_id, running.fence))
        assert run.outcome == RunOutcome.LEASE_LOST, "nobody pays for what is thrown away"
    assert events(database, running.job_id)[-2:] == ["job.requeued", "job.rerouted"]
    with pytest.raises(LeaseLost), database.transaction() as session:
        lease.finish(session, running, Finish(JobState.SUCCEEDED, [TOKEN], 2))


def test_jobs_of_a_paused_batch_move_too_and_are_not_rung_for(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
        session.execute(update(Job).where(Job.id.in_(tried)).values(held=True))
        session.execute(delete(OutboxMessage))
    roll_back(database, scene)
    assert where(database, tried) == {"1"}
    with database.transaction() as session:
        assert session.scalars(select(OutboxMessage).where(OutboxMessage.topic == "doorbell")).all() == []


def test_a_job_that_the_champion_cannot_hold_stays(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        short = scene.tried(scene.submit(session, params={"max_tokens": 8}))
        long = scene.tried(scene.submit(session, params={"max_tokens": 200}))
        session.get_one(Deployment, scene.champion.id).context_length = 100
    roll_back(database, scene)
    assert where(database, short) == {"1"}
    assert where(database, long) == {"2"}


def test_another_tokenizer_counts_the_prompt_anew(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
        session.get_one(Deployment, scene.candidate.id).manifest = {"tokenizer.json": "another"}
    roll_back(database, scene)
    with database.transaction() as session:
        assert set(session.scalars(select(Job.prompt_tokens).where(Job.id.in_(tried)))) == {None}


def test_whoever_asked_for_it_is_told(database: Database, scene: Scene) -> None:
    webhook = {"url": "https://example.com/hook", "events": ["job.rerouted"]}
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session, webhook=webhook))
        scene.submit(session)
    roll_back(database, scene)
    with database.transaction() as session:
        owed = session.scalars(select(WebhookDelivery)).all()
        assert sorted(each.job_id or "" for each in owed) == tried
        document = owed[0].payload
        assert (document["type"], document["event_number"]) == ("job.rerouted", 2)
        assert document["data"]["model_version"] == "1"


@pytest.fixture
def lead(database: Database) -> Lead:
    with database.transaction() as session:
        taken = take(session, "rollouts", "test", 600)
    assert taken
    return taken


def come_late(database: Database, scene: Scene) -> list[str]:
    """Jobs that had chosen the candidate before it was rolled back, and were committed after that."""
    with database.transaction() as late:
        tried = scene.tried(scene.submit(late))
        assert tried
        roll_back(database, scene)  # waits for none of them
    assert where(database, tried) == {"2"}
    return tried


def grow_old(database: Database, scene: Scene) -> None:
    """No submit can come any more that knew the rollout."""
    with database.transaction() as session:
        session.get_one(Rollout, scene.rollout_id).entered_at = utc_now() - timedelta(minutes=5)


def test_a_submit_that_chose_before_and_commits_after_is_found(database: Database, scene: Scene, lead: Lead) -> None:
    tried = come_late(database, scene)
    grow_old(database, scene)
    with database.transaction() as claiming:
        claiming.execute(select(Job.id).where(Job.id == tried[0]).with_for_update()).one()
        assert sweep(database, lead) is Left.MORE
        assert sweep(database, lead) is Left.PERHAPS, "one is left, which somebody has locked"
    assert where(database, tried[1:]) == {"1"}
    assert [sweep(database, lead), sweep(database, lead)] == [Left.MORE, Left.NOTHING], "it does not look for ever"
    assert where(database, tried) == {"1"}
    with database.transaction() as session:
        assert not session.get_one(Rollout, scene.rollout_id).clearing


def test_until_then_nobody_begins_it_at_the_version_that_has_lost(database: Database, scene: Scene, lead: Lead) -> None:
    with database.transaction() as session:
        scene.submit(session)
        begun = scene.claim(session)
        lease.checkpoint(session, [Progress(begun, [TOKEN], None)])
        lease.hand_back(session, begun, RunOutcome.CRASHED, "it fell over", max_own_crashes=3)
        session.get_one(Deployment, scene.candidate.id).first_ready_at = utc_now()
        named = submit_job(session, scene.tenant, model="tiny:2").id
    tried = come_late(database, scene)
    assert scene.claimed(database, scene.candidate, 50) == {begun.job_id, named}
    assert scene.claimed(database, scene.candidate, 1) == set()
    sweep(database, lead)
    assert scene.claimed(database, scene.candidate, 50) == set()
    assert set(tried) <= scene.claimed(database, scene.champion, 50)


def test_a_champion_again_begins_its_jobs(database: Database, scene: Scene) -> None:
    roll_back(database, scene)
    with database.transaction() as session:
        session.get_one(RoutingPolicy, "tiny").champion_id = scene.candidate.id  # by hand, a moment later
        session.flush()
        waiting = {job.id for job in scene.submit(session, 2)}
    assert scene.claimed(database, scene.candidate, 50) == waiting


def test_a_great_queue_is_moved_batch_by_batch_without_a_pause(
    database: Database, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (consequences, stragglers):
        monkeypatch.setattr(module, "reroute", partial(reroute, most=3))
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session, 20))
    roll_back(database, scene)
    controller = Controller(database, RolloutMetrics(CollectorRegistry()))
    batches = -(-(len(tried) - 3) // 3)
    pauses = [controller.attempt() for _ in range(batches + 1)]
    assert batches >= 1
    assert pauses == [*[0.0] * batches, BUSY_SECONDS]
    assert where(database, tried) == {"1"}


def test_a_claim_and_a_rollback_at_once_share_no_job(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
    with database.transaction() as claiming:
        held = scene.claim(claiming)
        roll_back(database, scene)
    assert where(database, [held.job_id]) == {"2"}
    assert where(database, [job_id for job_id in tried if job_id != held.job_id]) == {"1"}


def test_what_is_too_much_for_one_transaction_follows(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
        way = Way(scene.candidate, scene.champion, scene.rollout_id, "a test")
        assert reroute(session, way, most=2).count == 2
        assert reroute(session, way).count == len(tried) - 2
        assert reroute(session, way).count == 0


def test_a_pause_stops_new_jobs_and_a_resume_goes_on(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        tried = scene.tried(scene.submit(session))
        services.pause(session, scene.rollout_id, ANN)
        assert {job.model_version for job in scene.submit(session)} == {"1"}
        services.resume(session, scene.rollout_id, ANN)
        rollout = session.get_one(Rollout, scene.rollout_id)
        assert (rollout.share, rollout.note) == (0.01, None)
    assert where(database, tried) == {"2"}, "those that wait for it are served by it"


def test_a_version_that_is_nowhere_ready_gets_no_jobs(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        session.execute(delete(Hosting).where(Hosting.deployment_id == scene.candidate.id))
        services.promote(session, scene.rollout_id, ANN, "on with it")
        rollout = session.get_one(Rollout, scene.rollout_id)
        assert (rollout.step, rollout.share) == (1, 0.0)
        assert rollout.note == "no live worker has the candidate ready: unknown"
        assert {job.model_version for job in scene.submit(session)} == {"1"}
        for _ in range(2):
            services.promote(session, scene.rollout_id, ANN, "on with it")
        with pytest.raises(RolloutMoveRefused, match="no live worker has version 2 ready"):
            services.promote(session, scene.rollout_id, ANN, "to the end")


@pytest.fixture
def promoted(database: Database) -> Scene:
    """The same after the last gate was passed, with jobs waiting at both versions."""
    with database.transaction() as session:
        scene = Scene(session, step=3)
        services.promote(session, scene.rollout_id, ANN, "it is good")
        return scene


def test_a_promotion_moves_the_very_next_job(database: Database, promoted: Scene) -> None:
    with database.transaction() as session:
        assert {job.model_version for job in promoted.submit(session)} == {"2"}
        route = session.get_one(RoutingPolicy, "tiny")
        assert (route.champion_id, route.alias_to) == (promoted.candidate.id, "2")
        warm = session.get_one(Deployment, promoted.champion.id).keep_warm_until
        assert warm is not None
        assert timedelta(hours=23) < warm - utc_now() < timedelta(hours=25)


def test_and_is_taken_back_in_one_step(database: Database, promoted: Scene) -> None:
    with database.transaction() as session:
        waiting = [job.id for job in promoted.submit(session, 3)]
        session.get_one(Deployment, promoted.champion.id).state = "retired"
    roll_back(database, promoted)
    assert where(database, waiting) == {"1"}
    with database.transaction() as session:
        route = session.get_one(RoutingPolicy, "tiny")
        assert (route.champion_id, route.alias_to) == (promoted.champion.id, "1")
        assert session.get_one(Deployment, promoted.champion.id).state == "active"
        assert session.get_one(Rollout, promoted.rollout_id).state == State.ROLLED_BACK


def test_unless_another_has_taken_over_since(database: Database, promoted: Scene) -> None:
    with database.transaction() as session:
        make_deployment(session, version="3")
        with pytest.raises(RolloutMoveRefused, match="serves no longer"):
            services.roll_back(session, promoted.rollout_id, ANN)


def test_a_champion_again_keeps_its_jobs(database: Database, scene: Scene) -> None:
    roll_back(database, scene)
    with database.transaction() as session:
        route = session.get_one(RoutingPolicy, "tiny")
        route.champion_id = scene.candidate.id  # by hand, a moment later
        session.flush()
        waiting = [job.id for job in scene.submit(session, 2)]
        rollout = session.get_one(Rollout, scene.rollout_id)
        assert send_back(session, rollout, route, services.policy_of(rollout)).count == 0
    assert where(database, waiting) == {"2"}


def test_the_ledger_says_what_was_judged_and_whom_it_met(database: Database, scene: Scene) -> None:
    with database.transaction() as session:
        jobs = scene.submit(session)
        held = scene.claim(session)
        lease.finish(session, held, Finish(JobState.FAILED, [], 2, error={"code": "x", "message": "y"}))
    roll_back(database, scene)
    moved = sorted(set(scene.tried(jobs)) - {held.job_id})
    with database.transaction() as session:
        (decision,) = ledger(session, scene.rollout_id)
        assert (decision.number, decision.model_name, decision.reason) == (2, "tiny", "it sings")
        assert (decision.from_version, decision.to_version) == ("1", "1")
        assert decision.artifacts["candidate"]["digest"] == "digest of tiny 2"
        assert decision.jobs == {
            "failed": {"count": 1, "ids": [held.job_id]},
            "rerouted": {"count": len(moved), "ids": moved},
        }


def test_a_promotion_stands_in_the_ledger_with_both_versions(database: Database, promoted: Scene) -> None:
    with database.transaction() as session:
        (decision,) = ledger(session, promoted.rollout_id)
        assert (decision.from_version, decision.to_version, decision.jobs) == ("1", "2", {})
