"""What came of assigned jobs becomes evidence once, on a real PostgreSQL: turns break off, and run side by side."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.feedback.models import Feedback
from penstock.ids import new_id
from penstock.jobs.models import Job, JobRun
from penstock.registry.models import Deployment, Hosting
from penstock.rollouts import folding
from penstock.rollouts.assignment import Arm
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.models import AssignedUnit, Assignment, Rollout
from penstock.rollouts.policy import AB, Canary, Latency, Policy, Step
from penstock.rollouts.statistics import Sample, Tally
from penstock.rollouts.thresholds import FEWEST_JOBS
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_rollout, make_tenant, make_worker, submit_job

STEPS = (
    Step(share=0.1, error_margin=0.2, slow_margin=0.2),
    Step(share=0.5, error_margin=0.1, slow_margin=0.1),
)
POLICY = Policy(offline=None, shadow=None, canary=Canary(steps=STEPS), latency=Latency(prompt_tokens=(512,)), ab=AB())
QUIET = POLICY.model_copy(update={"latency": None})


@dataclass
class Stage:
    """Two versions with a rollout, its jobs, and turns of its gate."""

    database: Database
    rollout_id: str
    tenant_id: str
    champion_id: str
    candidate_id: str
    evidence: Evidence = field(default_factory=Evidence)
    policy: Policy = QUIET

    def assigned(self, session: Session, arm: Arm, **columns: Any) -> Job:
        """A job on that arm, as a submit leaves it."""
        rollout = session.get_one(Rollout, self.rollout_id)
        version = self.candidate_id if arm is Arm.CANDIDATE else self.champion_id
        job = submit_job(session, session.get_one(Tenant, self.tenant_id))
        job.deployment_id = version
        own = {"rollout_id": rollout.id, "stage": rollout.state, "step": rollout.step, "arm": arm}
        given = own | {"share": rollout.share, "unit": rollout.unit, "key": None} | columns
        session.execute(update(Assignment).where(Assignment.job_id == job.id).values(given))
        return job

    def ends(self, arm: Arm, *, key: str | None = None, **how: Any) -> str:
        """A job on that arm that has ended; its id."""
        with self.database.transaction() as session:
            job = self.assigned(session, arm, key=key)
            finish(session, job, **how)
            return job.id

    def turn(self) -> Evidence:
        with self.database.transaction() as session:
            self.evidence = self.gathered(session)
        return self.evidence

    def gathered(self, session: Session) -> Evidence:
        rollout = session.get_one(Rollout, self.rollout_id)
        return folding.gather(session, rollout, self.policy, self.evidence)

    def change(self, **columns: Any) -> None:
        with self.database.transaction() as session:
            session.execute(update(Rollout).where(Rollout.id == self.rollout_id).values(columns))


def finish(
    session: Session, job: Job, *, state: str = "succeeded", code: str | None = None, seconds: float = 1.0, **how: Any
) -> None:
    """End a job as a worker would have it: with a run, its times, and its error."""
    ended: datetime = how.get("at", utc_now())
    job.prompt_tokens = how.get("prompt_tokens", 10)
    session.flush()
    if how.get("began", True):
        job.started_at, job.runs = ended - timedelta(seconds=seconds), how.get("runs", 1)
        job.state, job.lease_holder = "running", "a worker"
        outcome = how.get("outcome", "finished")
        run = JobRun(job_id=job.id, fence=1, worker_id=how.get("worker", "a worker"), started_at=job.started_at)
        run.ended_at, run.outcome = ended, outcome
        run.device_seconds = how.get("device_seconds", 0.0)
        session.add(run)
        session.flush()
    job.state, job.lease_holder, job.finished_at = state, None, ended
    job.error = {"code": code} if code else None
    session.flush()


def run(session: Session, job: Job, *, seconds: float, prompt_tokens: int = 10, runs: int = 1) -> None:
    """Have a job run for so long by now."""
    job.prompt_tokens, job.runs, job.lease_holder = prompt_tokens, runs, "a worker"
    job.started_at, job.state = utc_now() - timedelta(seconds=seconds), "running"
    session.flush()


@pytest.fixture
def stage(database: Database) -> Stage:
    with database.transaction() as session:
        champion = make_deployment(session)
        candidate = make_deployment(session, version="2", champion=False)
        rollout = make_rollout(session, champion, candidate, policy=POLICY, share=0.1)
        return Stage(database, rollout.id, make_tenant(session).id, champion.id, candidate.id)


def test_what_ended_is_counted_once_and_nothing_before_it_ends(stage: Stage) -> None:
    with stage.database.transaction() as session:
        waiting = stage.assigned(session, Arm.CANDIDATE)
    stage.ends(Arm.CANDIDATE, state="failed", code="logits_not_finite")
    stage.ends(Arm.CHAMPION)
    seen = stage.turn()
    assert (seen.units, seen.failures) == (Tally().plus(0.1, 2, 1), Tally().plus(0.1, 1))
    assert (seen.step_units, seen.pairs["errors"]) == (1, Sample().plus(1))
    assert stage.turn() == seen
    with stage.database.transaction() as session:
        finish(session, session.get_one(Job, waiting.id), state="failed", code="forward_failed")
    assert stage.turn().failures == Tally().plus(0.1, 2)
    assert stage.evidence.units == seen.units


@pytest.mark.parametrize("state", ["cancelled", "expired"])
def test_what_was_broken_off_is_a_unit_and_neither_failure_nor_proof(stage: Stage, state: str) -> None:
    stage.ends(Arm.CANDIDATE, state=state)
    stage.ends(Arm.CHAMPION, state=state, began=False)
    seen = stage.turn()
    assert (seen.units, seen.failures, seen.pairs, seen.step_units) == (Tally().plus(0.1, 1, 1), Tally(), {}, 0)


def test_a_job_that_was_sent_to_the_other_version_says_nothing_of_its_own(stage: Stage) -> None:
    with stage.database.transaction() as session:
        job = stage.assigned(session, Arm.CANDIDATE)
        job.deployment_id = stage.champion_id
        finish(session, job, state="failed", code="forward_failed")
    seen = stage.turn()
    assert (seen.units.total, seen.failures, seen.step_units) == (1, Tally(), 0)


def test_steps_of_a_canary_are_one_stage_and_each_counts_its_own_units(stage: Stage) -> None:
    stage.ends(Arm.CANDIDATE, state="failed", code="forward_failed")
    with stage.database.transaction() as session:
        late = stage.assigned(session, Arm.CANDIDATE).id
    stage.turn()
    stage.change(step=1, share=0.5)
    stage.evidence = replace(stage.evidence, step_units=0)
    stage.ends(Arm.CANDIDATE, state="failed", code="forward_failed")
    with stage.database.transaction() as session:
        finish(session, session.get_one(Job, late), state="failed", code="forward_failed", began=False)
    seen = stage.turn()
    assert seen.failures == Tally().plus(0.1, 2).plus(0.5, 1)
    assert (seen.units, seen.step_units) == (Tally().plus(0.1, 2).plus(0.5, 1), 1)


def test_a_turn_that_breaks_off_has_counted_nothing(stage: Stage) -> None:
    stage.change(unit="user")
    stage.ends(Arm.CANDIDATE, key="ann", state="failed", code="forward_failed")

    def break_off() -> None:
        with stage.database.transaction() as session:
            assert stage.gathered(session).failures.candidate == 1
            raise InterruptedError

    with pytest.raises(InterruptedError):
        break_off()
    seen = stage.turn()
    assert (seen.units, seen.failures) == (Tally().plus(0.1, 1), Tally().plus(0.1, 1))
    assert stage.turn() == seen


def test_turns_side_by_side_count_each_job_and_each_user_once(stage: Stage) -> None:
    stage.change(unit="user")
    for name in ("ann", "bob", "ann", "bob", "cyd", "ann"):
        stage.ends(Arm.CANDIDATE, key=name, state="failed", code="forward_failed")
    together = Barrier(3)

    def turn() -> Evidence:
        together.wait(30)
        with stage.database.transaction() as session:
            return stage.gathered(session)

    with ThreadPoolExecutor(3) as pool:
        turns = [future.result(30) for future in [pool.submit(turn) for _ in range(3)]]
    turns.append(stage.turn())
    assert sum(turn.units.total for turn in turns) == 3
    assert sum(turn.failures.candidate for turn in turns) == 3
    with stage.database.transaction() as session:
        assert session.scalars(select(Assignment).where(Assignment.counted_at.is_(None))).all() == []


def test_a_user_is_a_unit_with_their_first_job(stage: Stage) -> None:
    stage.change(unit="user")
    stage.ends(Arm.CHAMPION, key="ann")
    stage.turn()
    stage.change(step=1, share=0.5)  # which moves her to the candidate
    stage.ends(Arm.CANDIDATE, key="ann", state="failed", code="forward_failed")
    stage.ends(Arm.CANDIDATE, key="bob")
    seen = stage.turn()
    assert seen.units == Tally().plus(0.1, 0, 1).plus(0.5, 1)
    assert seen.failures == Tally().plus(0.5, 1)
    assert (seen.step_units, seen.waiting["errors"]) == (2, (0.0,))


def test_thresholds_are_the_champions_of_before_the_stage_by_length_of_prompt(stage: Stage) -> None:
    stage.policy = POLICY
    with stage.database.transaction() as session:
        tenant = session.get_one(Tenant, stage.tenant_id)
        for number in range(FEWEST_JOBS):
            job = submit_job(session, tenant, model="tiny:1")
            finish(session, job, seconds=1 + number / (FEWEST_JOBS - 1))
        finish(session, submit_job(session, tenant, model="tiny:1"), prompt_tokens=600, seconds=99)
        rollout = session.get_one(Rollout, stage.rollout_id)
        folding.begin(session, rollout, POLICY)
        assert rollout.thresholds == {"<512": pytest.approx(1.95)}
    stage.ends(Arm.CANDIDATE, seconds=1.94)
    stage.ends(Arm.CANDIDATE, seconds=1.96)
    stage.ends(Arm.CHAMPION, seconds=1.96)
    stage.ends(Arm.CANDIDATE, seconds=500, prompt_tokens=600)
    seen = stage.turn()
    assert seen.slow == {"<512": Tally().plus(0.1, 1, 1)}
    assert seen.pairs["slow"] == Sample().plus(-1)


def test_a_missing_threshold_is_set_by_jobs_that_are_not_judged_by_it(stage: Stage) -> None:
    stage.policy = POLICY
    for number in range(FEWEST_JOBS):
        stage.ends(Arm.CHAMPION, seconds=1 + number / (FEWEST_JOBS - 1))
    assert stage.turn().slow == {}
    with stage.database.transaction() as session:
        assert session.get_one(Rollout, stage.rollout_id).thresholds == {"<512": pytest.approx(1.95)}
    for _ in range(FEWEST_JOBS):
        stage.ends(Arm.CHAMPION, seconds=50)
    assert stage.turn().slow == {"<512": Tally().plus(0.1, 0, FEWEST_JOBS)}
    with stage.database.transaction() as session:
        assert session.get_one(Rollout, stage.rollout_id).thresholds == {"<512": pytest.approx(1.95)}


@pytest.mark.parametrize(
    "how",
    [{"began": False, "state": "failed"}, {"runs": 2}, {"cold": True}],
    ids=["never", "anew", "cold"],
)
def test_jobs_that_tell_nothing_of_a_version_s_pace_are_left_out(stage: Stage, how: dict[str, Any]) -> None:
    stage.policy = POLICY
    stage.change(thresholds={"<512": 0.001, "rest": 0.001})
    worker = "a worker"
    with stage.database.transaction() as session:
        if how.pop("cold", False):
            worker = make_worker(session, session.get_one(Deployment, stage.candidate_id)).id
            session.execute(update(Hosting).values(ready_at=utc_now() - timedelta(seconds=20)))
    stage.ends(Arm.CANDIDATE, worker=worker, **how)
    seen = stage.turn()
    assert (seen.slow, seen.waiting.get("slow"), seen.step_units) == ({}, None, 1)
    with stage.database.transaction() as session:
        session.execute(update(Hosting).values(ready_at=utc_now() - timedelta(seconds=200)))
    stage.ends(Arm.CANDIDATE, worker=worker)
    assert stage.turn().slow == {"<512": Tally().plus(0.1, 1)}


def test_a_job_that_runs_for_too_long_is_slow_before_it_ends_and_once(stage: Stage) -> None:
    stage.policy = POLICY
    stage.change(thresholds={"<512": 10.0})
    with stage.database.transaction() as session:
        jobs = {arm: stage.assigned(session, arm) for arm in (Arm.CANDIDATE, Arm.CHAMPION)}  # in this order, a pair
        for job in jobs.values():
            run(session, job, seconds=60)
        run(session, stage.assigned(session, Arm.CANDIDATE), seconds=5)
        run(session, stage.assigned(session, Arm.CANDIDATE), seconds=60, runs=2)
        run(session, stage.assigned(session, Arm.CANDIDATE), seconds=60, prompt_tokens=600)
    seen = stage.turn()
    assert seen.slow == {"<512": Tally().plus(0.1, 1, 1)}, "of both versions alike"
    assert (seen.pairs["slow"], seen.step_units, seen.pairs.get("errors")) == (Sample().plus(0), 0, None)
    assert stage.turn() == seen
    with stage.database.transaction() as session:
        for job in jobs.values():
            finish(session, session.get_one(Job, job.id), seconds=90)
    after = stage.turn()
    assert (after.slow, after.pairs["slow"]) == (seen.slow, seen.pairs["slow"]), "not again"
    assert (after.step_units, after.pairs["errors"]) == (1, Sample().plus(0)), "and its end counts as any"


def test_a_user_whose_job_runs_for_too_long_is_slow_once(stage: Stage) -> None:
    stage.policy = POLICY
    stage.change(thresholds={"<512": 10.0}, unit="user")
    with stage.database.transaction() as session:
        job = stage.assigned(session, Arm.CANDIDATE, key="ann")
        run(session, job, seconds=60)
    assert stage.turn().slow == {"<512": Tally().plus(0.1, 1)}
    with stage.database.transaction() as session:
        finish(session, session.get_one(Job, job.id), seconds=90)
    stage.ends(Arm.CANDIDATE, key="ann", seconds=90)
    seen = stage.turn()
    assert (seen.slow, seen.waiting["slow"]) == ({"<512": Tally().plus(0.1, 1)}, (1.0,))


def test_crashes_of_the_candidate_alone_are_counted_since_the_stage_began(stage: Stage) -> None:
    def crash(arm: Arm, outcome: str = "crashed_alone", **how: Any) -> None:
        stage.ends(arm, state="failed", code="engine_crashed", outcome=outcome, **how)

    crash(Arm.CANDIDATE)
    crash(Arm.CANDIDATE, "crashed")
    crash(Arm.CANDIDATE, at=utc_now() - timedelta(hours=1))
    crash(Arm.CHAMPION)
    assert stage.turn().crashes == 1
    with stage.database.transaction() as session:
        session.execute(update(JobRun).values(outcome="finished"))  # as if the jobs were deleted
    assert stage.turn().crashes == 1


def said(stage: Stage, job_id: str, score: float | None, at: datetime | None = None) -> None:
    with stage.database.transaction() as session:
        job = session.get_one(Job, job_id)
        version = {"deployment_id": job.deployment_id, "model_name": "tiny", "model_version": job.model_version}
        whose = {"tenant_id": job.tenant_id, "job_id": job_id, "api_key_id": "key_1", "label": "seen"}
        given = Feedback(id=new_id("fbk"), score=score, created_at=at or utc_now(), **whose, **version)
        session.add(given)


def test_feedback_counts_once_for_each_user_also_when_it_comes_late(stage: Stage) -> None:
    stage.change(state="ab", unit="user", share=0.5)
    ann, bob = stage.ends(Arm.CANDIDATE, key="ann", device_seconds=3.5), stage.ends(Arm.CHAMPION, key="bob")
    again = stage.ends(Arm.CANDIDATE, key="ann")
    said(stage, ann, None)
    assert stage.turn().judged == Tally()
    said(stage, bob, 0.5)  # nobody of the candidate's waits for it
    said(stage, ann, 0.25)
    said(stage, again, 1.0)
    assert stage.turn().judged == Tally().plus(0.5, 1, 1)
    assert stage.evidence.waiting["feedback"] == (-0.25,)
    assert stage.turn() == stage.evidence
    cyd = stage.ends(Arm.CHAMPION, key="cyd", device_seconds=1.5)
    said(stage, cyd, 0.75, utc_now() - timedelta(seconds=5))  # whose transaction took so long
    said(stage, ann, 0.0)
    seen = stage.turn()
    assert (seen.judged, seen.pairs["feedback"]) == (Tally().plus(0.5, 1, 2), Sample().plus(0.5))
    assert seen.trades == ((500, -2000, 1),)


def test_who_leaves_a_stage_forgets_its_users_and_counts_no_more(stage: Stage) -> None:
    stage.change(unit="user")
    stage.ends(Arm.CANDIDATE, key="ann")
    stage.turn()
    stage.ends(Arm.CANDIDATE, key="bob", state="failed", code="forward_failed")
    with stage.database.transaction() as session:
        folding.end(session, session.get_one(Rollout, stage.rollout_id), POLICY)
        assert session.scalars(select(AssignedUnit)).all() == []
    seen = stage.evidence
    assert stage.turn() == seen


def test_many_ends_are_counted_in_several_turns(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "AT_ONCE", 2)
    for _ in range(3):
        stage.ends(Arm.CANDIDATE)
    assert [stage.turn().step_units for _ in range(3)] == [2, 3, 3]
    assert stage.evidence.units.total == 3
