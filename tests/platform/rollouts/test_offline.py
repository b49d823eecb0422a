"""The offline gate on a real PostgreSQL: its evaluation is a job like others, here claimed and finished by hand."""

from collections.abc import Callable
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.auth.system_tenant import SYSTEM_TENANT_ID
from penstock.compressions.lane import holder
from penstock.compressions.models import Compression
from penstock.db import Database
from penstock.files.models import File
from penstock.ids import new_id
from penstock.jobs import lease
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.folder import manifest_digest
from penstock.registry.models import LANE_ID, Deployment
from penstock.rollouts import offline
from penstock.rollouts.evidence import Comparison, Evidence
from penstock.rollouts.models import OfflineEvaluation, Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.states import Position, State
from penstock.rollouts.verdicts import Verdict, judge
from penstock_compress.figures import Divergence, Estimate, Evaluation, Flips, ModelFigures, Noise
from sqlalchemy import func, select

from tests.factories import make_deployment, make_tenant, submit_job

INT4 = {"config": {"config_groups": {"0": {"weights": {"num_bits": 4}, "targets": ["Linear"]}}}}
OFFLINE = Position(State.OFFLINE)


def sure(value: float) -> Estimate:
    return Estimate(value, 0.0, value, value)


def model(held_bytes: int, speed: float | None, right: float | None) -> ModelFigures:
    exact = None if right is None else sure(right)
    return ModelFigures("/m", held_bytes, held_bytes, 64, speed, sure(3.0), exact)


def divergence(mean: float, same_top: float, ratio: float) -> Divergence:
    return Divergence(sure(mean), mean, mean, mean, sure(same_top), sure(ratio))


def evaluation(mean_kld: float = 0.01, *, answers: int = 500) -> dict[str, Any]:
    """What the tool tells: of a version with weights of 4 bits, a third as large and twice as fast."""
    flips = Flips(answers, 10, 5, sure(0.03)) if answers else None
    none = Flips(answers, 0, 0, sure(0.0)) if answers else None
    right = 0.9 if answers else None
    return Evaluation(
        sequences=500,
        positions=50_000,
        answers=answers,
        candidate=model(100, 80.0, right),
        against=model(300, 40.0, right),
        divergence=divergence(mean_kld, 0.97, 1.01),
        flips=flips,
        noise=Noise(divergence(0.0001, 0.999, 1.0), none),
        by_position=[],
    ).as_dict()


class Gate:
    """A rollout in its offline gate, and the worker of its evaluations."""

    def __init__(self, database: Database, operator: Tenant) -> None:
        self.database, self.operator = database, operator
        with database.transaction() as session:
            champion = make_deployment(session)
            candidate = make_deployment(session, version="2", champion=False)
            candidate.recipe, candidate.manifest = INT4, {"model.safetensors": "ab"}
            rollout = Rollout(
                id=new_id("rol"),
                model_name="tiny",
                candidate_id=candidate.id,
                champion_id=champion.id,
                policy={},
                policy_version="x",
                seed="x",
                state="offline",
                step=0,
                fence=1,
                started_by=operator.id,
            )
            session.add(rollout)
            self.id, self.candidate_id, self.champion_id = rollout.id, candidate.id, champion.id

    def gather(self, before: Evidence | None = None, **gate: Any) -> Evidence:
        policy = Policy.model_validate({"offline": gate}, strict=False)
        with self.database.transaction() as session:
            rollout = session.get_one(Rollout, self.id)
            return offline.gather(session, rollout, policy, before or Evidence())

    def end(self) -> None:
        with self.database.transaction() as session:
            offline.end(session, session.get_one(Rollout, self.id), Policy())

    def jobs(self) -> list[Job]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Job).where(Job.kind == "evaluate").order_by(Job.id)))

    def finish(self, state: JobState, *, of: str = LANE_ID, **result: Any) -> str:
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id=holder("wrk_1"), deployment_id=of, lease_seconds=30)
            assert claim
            lease.finish(session, Held(claim.job.id, claim.fence), Finish(state, (), 0, **result))
            return claim.job.id


@pytest.fixture
def gate(database: Database) -> Gate:
    with database.transaction() as session:
        operator = make_tenant(session)
    return Gate(database, operator)


@pytest.fixture
def text(database: Database, gate: Gate) -> None:
    """A job of a customer that has succeeded."""
    with database.transaction() as session:
        submit_job(session, make_tenant(session))
    gate.finish(JobState.SUCCEEDED, output={"choices": [{"text": "hello"}]}, of=gate.champion_id)


@pytest.mark.usefixtures("text")
def test_the_candidate_is_evaluated_once_and_judged_by_what_was_found(gate: Gate) -> None:
    assert gate.gather() == Evidence()
    assert gate.gather() == Evidence(), "it waits"
    (job,) = gate.jobs()
    assert job.tenant_id == SYSTEM_TENANT_ID, "text of all tenants is nobody's to see"
    assert (job.model, job.input["against"]) == ("tiny:2", "tiny:1")
    assert job.input["data"] == {"from": "jobs", "count": 256, "all_tenants": True}
    assert gate.finish(JobState.SUCCEEDED, output={"figures": evaluation()}) == job.id

    found = gate.gather()
    assert found.offline
    figures = found.offline
    assert (figures.bits, figures.tokens, figures.answers, figures.job_id) == (4, 50_000, 500, job.id)
    assert figures.candidate == Comparison(0.01, 0.97, 1.01 - 1, 0.03)
    assert figures.noise == Comparison(0.0001, 0.999, 0.0, 0.0)
    assert figures.ratios == {"memory": pytest.approx(1 / 3), "speed": 2.0}
    assert figures.models["candidate"].digest == manifest_digest({"model.safetensors": "ab"})
    assert (figures.models["reference"].version, figures.models["reference"].accuracy) == ("1", 0.9)
    assert Evidence.from_json(found.to_json()) == found
    assert judge(OFFLINE, Policy(), found).verdict is Verdict.PROMOTE
    assert gate.gather(found) == found, "what was found stays, and nothing more is submitted"
    assert len(gate.jobs()) == 1


@pytest.mark.usefixtures("text")
def test_limits_of_memory_and_speed_are_the_policys(gate: Gate) -> None:
    gate.gather()
    gate.finish(JobState.SUCCEEDED, output={"figures": evaluation()})
    found = gate.gather()
    for limits, verdict in (
        ({"memory_ratio": 0.3}, Verdict.ROLLBACK),
        ({"memory_ratio": 0.4, "speed_ratio": 1.9}, Verdict.PROMOTE),
        ({"speed_ratio": 2.1}, Verdict.ROLLBACK),
    ):
        assert judge(OFFLINE, Policy.model_validate({"offline": limits}), found).verdict is verdict, limits


@pytest.mark.usefixtures("text")
def test_text_without_questions_is_judged_by_the_other_figures(gate: Gate) -> None:
    gate.gather()
    gate.finish(JobState.SUCCEEDED, output={"figures": evaluation(answers=0)})
    judgement = judge(OFFLINE, Policy(), gate.gather())
    assert judgement.verdict is Verdict.PROMOTE
    assert "no question" in next(reason.text for reason in judgement.reasons if reason.name == "flips")


@pytest.mark.usefixtures("text")
def test_a_failed_evaluation_is_tried_once_more_and_then_holds(gate: Gate) -> None:
    gate.gather()
    gate.finish(JobState.FAILED, error={"code": "tool_crashed", "message": "it crashed"})
    assert "has failed: it crashed" in (gate.gather().trouble or "")
    assert len(gate.jobs()) == 2
    assert gate.gather() == Evidence()
    gate.finish(JobState.CANCELLED)
    for _ in range(2):
        held = gate.gather()
        judgement = judge(OFFLINE, Policy(), held)
        assert judgement.verdict is Verdict.HOLD
        assert f"{gate.jobs()[1].id} has cancelled" in judgement.reasons[0].text
    assert len(gate.jobs()) == 2

    with gate.database.transaction() as session:  # an operator pauses and resumes
        session.get_one(Rollout, gate.id).entered_at = session.scalars(select(func.clock_timestamp())).one()
    gate.gather()
    assert len(gate.jobs()) == 3


@pytest.mark.usefixtures("text")
def test_whoever_leaves_the_gate_cancels_the_evaluation(gate: Gate) -> None:
    gate.gather()
    gate.end()
    assert [job.state for job in gate.jobs()] == ["cancelled"]
    with gate.database.transaction() as session:
        assert session.scalars(select(OfflineEvaluation)).all() == []


@pytest.mark.usefixtures("text")
def test_an_evaluation_that_was_deleted_counts_as_failed(gate: Gate) -> None:
    gate.gather()
    gate.finish(JobState.FAILED, error={"code": "x", "message": "x"})
    with gate.database.transaction() as session:
        session.delete(session.get_one(Job, gate.jobs()[0].id))
    assert "deleted" in (gate.gather().trouble or "")
    assert len(gate.jobs()) == 1


def test_a_file_is_evaluated_by_its_tenant(gate: Gate) -> None:
    assert "give a file" in (gate.gather().trouble or ""), "no job has succeeded yet"
    assert gate.jobs() == []
    assert "file_x" in (gate.gather(data="file_x").trouble or "")
    with gate.database.transaction() as session:
        file = File(id=new_id("file"), tenant_id=gate.operator.id, filename="held-out.jsonl", purpose="batch")
        file.state, file.bytes, file.sha256, file.content_type = "ready", 1, "ab", "application/jsonl"
        session.add(file)
    assert gate.gather(data=file.id) == Evidence()
    (job,) = gate.jobs()
    assert (job.tenant_id, job.input["data"]) == (gate.operator.id, {"from": "file", "file_id": file.id})


@pytest.fixture
def parent(gate: Gate) -> Callable[[], None]:
    """Makes version 2 what a job of the platform has made of version 0."""

    def made() -> None:
        with gate.database.transaction() as session:
            job = submit_job(session, make_tenant(session))
            source = session.get_one(Deployment, gate.candidate_id).source
            version = {"name": "tiny", "version": "0", "source": "/whole", "manifest": {}, "scheme": "none"}
            row = Compression(job_id=job.id, model=version, against=None, made={"name": "tiny"})
            row.published = {"version": "2", "source": source}
            session.add(row)

    return made


@pytest.mark.usefixtures("text")
def test_the_reference_may_be_what_the_candidate_was_made_of(gate: Gate, parent: Callable[[], None]) -> None:
    assert "its parent is not known" in (gate.gather(reference="parent").trouble or "")
    parent()
    assert gate.gather(reference="parent") == Evidence()
    assert gate.jobs()[0].input["against"] == "tiny:0"


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        ({"scheme": "none", "dtype": "bfloat16"}, 16),
        ({"scheme": "none", "dtype": "float32"}, 32),
        (INT4, 4),
        ({"scheme": "gptq", "config": {"bits": 3}}, 3),
        ({"scheme": "awq", "config": {"w_bit": 4}}, 4),
        (
            {
                "config": {
                    "config_groups": {
                        "0": {"weights": {"num_bits": 8}, "targets": ["a"]},
                        "1": {"weights": {"num_bits": 3}, "targets": ["b", "c", "d", "e"]},
                    }
                }
            },
            4,
        ),
        ({"scheme": "bitsandbytes", "config": {}}, None),
    ],
)
def test_bits_are_those_of_the_recipe(recipe: dict[str, Any], bits: float | None) -> None:
    assert offline.bits_of(recipe) == bits
