"""A rollout from its registration to MLflow's alias, its control process killed in every gate.

The workers' part is done by hand, before and after each death and while nobody decides. What the ledger says in the
end is what one process would have decided that lived through all of it: each move once, on evidence that holds every
job once.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from penstock.auth.audit import Actor, ActorKind
from penstock.clock import utc_now
from penstock.compressions.lane import holder
from penstock.db import Database
from penstock.feedback.models import Feedback
from penstock.feedback.schemas import FeedbackRequest
from penstock.feedback.services import give
from penstock.files.models import File
from penstock.ids import new_id
from penstock.jobs import lease
from penstock.jobs.lease import Claim, Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.mlflow_sync import Synchroniser
from penstock.registry.models import LANE_ID, Deployment, RoutingPolicy
from penstock.replay.models import Comparison, ComparisonState
from penstock.rollouts import services
from penstock.rollouts.evidence import EVIDENCE, Evidence
from penstock.rollouts.ledger import ledger
from penstock.rollouts.models import Assignment, GateResult, Rollout
from penstock.rollouts.policy import AB, Alphas, Canary, Offline, Policy, Shadow, Step
from penstock.rollouts.states import State
from penstock.settings import Settings
from sqlalchemy import func, select

from tests.factories import make_tenant, make_worker, submit_job
from tests.patience import eventually
from tests.platform.registry.conftest import Registrar
from tests.platform.replay.house import SURE, House
from tests.platform.rollouts.test_offline import INT4, evaluation
from tests.registry.controlling import Control, controlled

ANN = Actor(ActorKind.USER, "usr_1", "Ann", "127.0.0.1", ())
FIRST, THEN = 6, 36
"""Jobs of a gate before its control process dies, and after: the first do not suffice."""
POLICY = Policy(
    alphas=Alphas(promotion=0.2),
    offline=Offline(minimum_tokens=1000),
    shadow=Shadow(sampling=1.0, free_running=0.0, minimum_jobs=FIRST + 1, mean_kld=0.9, disagreement=0.9),
    canary=Canary(steps=(Step(share=0.5, error_margin=0.9, slow_margin=0.9, minimum_jobs=FIRST + 1),)),
    ab=AB(feedback_margin=0.9, minimum_jobs=FIRST + 1),
    latency=None,
)


class Journey:
    """The rollout of version 2 against version 1, and the workers of both."""

    def __init__(self, database: Database, house: House, rollout_id: str) -> None:
        self.database, self.house, self.id = database, house, rollout_id
        self._customers = 0

    @property
    def state(self) -> str:
        with self.database.transaction() as session:
            return session.get_one(Rollout, self.id).state

    def evidence(self, state: State) -> Evidence:
        """What was gathered in that gate by now."""
        with self.database.transaction() as session:
            kept = session.get(GateResult, (self.id, state.value, 0))
            return EVIDENCE.validate_python(kept.evidence) if kept is not None else Evidence()

    def evaluate(self) -> None:
        """The evaluation of the offline gate ends well."""
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id=holder("wrk_1"), deployment_id=LANE_ID, lease_seconds=30)
            assert claim is not None
            told = {"figures": evaluation()}
            lease.finish(session, Held(claim.job.id, claim.fence), Finish(JobState.SUCCEEDED, (), 0, output=told))

    def serve(self, count: int) -> None:
        """So many customers each send a job, and get an answer of whichever version it went to."""
        for _ in range(count):
            self._customers += 1
            with self.database.transaction() as session:
                job = submit_job(session, self.house.tenant, metadata={"user": f"customer-{self._customers}"})
            version = self.house.candidate if job.model_version == "2" else self.house.champion
            claim = self.house.claim(version)
            assert claim.job.id == job.id
            self.house.finish(claim, (5, 6, 7))

    def score(self) -> None:
        """Whatever waits to be scored, is: both versions find the same likely."""
        for version in (self.house.champion, self.house.candidate):
            while (claim := self._claim(version)) is not None:
                self.house.told(claim, SURE)

    def _claim(self, version: Deployment) -> Claim | None:
        with self.database.transaction() as session:
            return lease.claim(session, worker_id=self.house.worker_id, deployment_id=version.id, lease_seconds=60)

    def like(self) -> None:
        """Every customer of the A/B who has said nothing yet likes the answer."""
        silent = (
            select(Job)
            .join(Assignment, Assignment.job_id == Job.id)
            .where(Assignment.stage == State.AB, ~select(Feedback.id).where(Feedback.job_id == Job.id).exists())
        )
        with self.database.transaction() as session:
            for job in session.scalars(silent).all():
                give(session, job.tenant_id, job.id, FeedbackRequest(score=1.0), api_key_id="key_1")


@pytest.fixture
def journey(database: Database, registrar: Registrar, synchroniser: Synchroniser) -> Journey:
    """Version 1 serves the model, version 2 is registered; a worker has both. The rollout stands in its first gate."""
    registrar(alias="champion")
    registrar(alias="challenger")
    synchroniser.tick()
    with database.transaction() as session:
        champion, candidate = session.scalars(select(Deployment).order_by(Deployment.model_version)).all()
        for version in (champion, candidate):
            version.first_ready_at = utc_now()
            worker = make_worker(session, version)
            worker.heartbeat_at = utc_now() + timedelta(hours=1)  # nobody beats for it
        candidate.recipe = INT4
        house = House(database, make_tenant(session), champion, candidate, worker.id)
        held_out = File(id=new_id("file"), tenant_id=house.tenant.id, filename="held-out.jsonl", purpose="batch")
        held_out.state, held_out.bytes, held_out.sha256, held_out.content_type = "ready", 1, "ab", "application/jsonl"
        session.add(held_out)
        session.flush()
        assert POLICY.offline is not None
        told = POLICY.model_copy(update={"offline": POLICY.offline.model_copy(update={"data": held_out.id})})
        rollout = services.start(session, "tiny", "2", told, ANN)
        rollout.started_by = house.tenant.id
        return Journey(database, house, rollout.id)


@pytest.fixture
def control(registry_settings: Settings, database: Database, journey: Journey) -> Iterator[Control]:
    with controlled(registry_settings, database) as started:
        yield started


def test_a_control_process_that_is_killed_in_every_gate_costs_nothing(
    database: Database, journey: Journey, control: Control, registrar: Registrar
) -> None:
    waiting = select(func.count()).select_from(Job).where(Job.kind == "evaluate")

    def evaluated() -> bool:
        with database.transaction() as session:
            return session.scalar(waiting) == 1

    eventually(evaluated, "the evaluation waits")
    die_while(control, journey.evaluate)
    eventually(lambda: journey.state == State.SHADOW, "the offline gate is passed")

    journey.serve(FIRST)
    eventually(lambda: scored(journey) == FIRST, "what was sampled first is scored")
    die_while(control, lambda: journey.serve(FIRST))
    eventually(lambda: bool(scored(journey)) and journey.state == State.CANARY, "the shadow is passed")

    for gate, onward in ((State.CANARY, State.AB), (State.AB, State.PROMOTED)):
        journey.serve(FIRST)
        journey.like()
        eventually(lambda gate=gate: journey.evidence(gate).units.total == FIRST, f"{gate} has seen its first jobs")  # type: ignore[misc]
        die_while(control, lambda: journey.serve(THEN), journey.like)
        eventually(lambda onward=onward: journey.state == onward, f"{gate} is passed")  # type: ignore[misc]

    assert control.killed == 4
    eventually(lambda: alias(registrar) == "2", "MLflow's alias has followed")
    eventually(lambda: owed(database) is None, "nothing is owed to MLflow")
    check_ledger(database, journey)


def die_while(control: Control, *works: Callable[[], None]) -> None:
    """Killed, and started again when the work is done."""
    control.kill()
    for work in works:
        work()
    control.start()


def scored(journey: Journey) -> int:
    """How many answers the shadow has counted; scores what waits."""
    journey.score()
    return journey.evidence(State.SHADOW).step_units


def alias(registrar: Registrar) -> str:
    """What MLflow says that the champion is."""
    answer = registrar.ask("GET", "registered-models/alias?name=tiny&alias=champion")
    return str(answer.raise_for_status().json()["model_version"]["version"])


def owed(database: Database) -> str | None:
    """The version that the alias is yet to be moved to."""
    with database.transaction() as session:
        return session.get_one(RoutingPolicy, "tiny").alias_to


def check_ledger(database: Database, journey: Journey) -> None:
    """Each move once, without a gap; each job once in the evidence that it was made on, and served once."""
    with database.transaction() as session:
        moves = ledger(session, journey.id)
        assert [(each.number, each.move, each.to_state) for each in moves] == [
            (1, "start", "offline"),
            (2, "promote", "shadow"),
            (3, "promote", "canary"),
            (4, "promote", "ab"),
            (5, "promote", "promoted"),
        ]
        seen = {each.from_state: EVIDENCE.validate_python(each.evidence) for each in moves[1:]}
        done = select(func.count()).select_from(Comparison).where(Comparison.state == ComparisonState.DONE)
        assert seen["shadow"].scored["mean_kld"].size == (session.scalar(done) or 0)
        for gate in ("canary", "ab"):
            assert seen[gate].units.total == FIRST + THEN, gate
            assert seen[gate].failures.total == 0
        assert seen["ab"].judged.total == FIRST + THEN
        assert session.get_one(RoutingPolicy, "tiny").champion_id == journey.house.candidate.id
        states = session.execute(select(Job.state, func.count()).where(Job.kind == "generate").group_by(Job.state))
        assert [tuple(row) for row in states] == [("succeeded", 2 * FIRST + 2 * (FIRST + THEN))]
