"""While a rollout is under way each new job of its model is on one of its arms, and says which and why."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import ContextLengthExceeded
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.schemas import JobRequest
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.assignment import Arm, Unit, Who, assign, place
from penstock.rollouts.models import Assignment, Rollout
from penstock.routing.services import find
from penstock.usage.budgets import set_budget
from penstock.usage.models import Price
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from tests.factories import WordCounter, make_deployment, make_rollout, make_tenant, submit_job


@dataclass
class Stage:
    """A session with a tenant, two versions and a rollout of the second."""

    session: Session
    tenant: Tenant
    champion: Deployment
    candidate: Deployment
    rollout: Rollout

    def submit(self, **body: Any) -> tuple[Job, Assignment | None]:
        job = submit_job(self.session, self.tenant, **body)
        return job, self.session.get(Assignment, job.id)

    def submit_many(self, count: int, **body: Any) -> list[tuple[Job, Assignment | None]]:
        """In one transaction's intake, as a batch's lines are."""
        intake = jobs.Intake(
            self.session, self.tenant.id, prompts=WordCounter(), limits=jobs.Limits(max_queued_jobs=10_000)
        )
        request = JobRequest.model_validate({"model": "tiny", "input": {"prompt": "hello there"}} | body)
        for _ in range(count):
            intake.admit(jobs.Asked.of(request), jobs.Origin())
        return [(job, self.session.get(Assignment, job.id)) for job in intake.write()]


@pytest.fixture
def stage(database: Database) -> Any:
    with database.transaction() as session:
        champion = make_deployment(session)
        candidate = make_deployment(session, version="2", champion=False)
        rollout = make_rollout(session, champion, candidate)
        yield Stage(session, make_tenant(session), champion, candidate, rollout)


def test_jobs_are_drawn_one_by_one_within_a_transaction_too(stage: Stage) -> None:
    drawn = stage.submit_many(60)
    for job, assigned in drawn:
        assert assigned is not None
        arm = assign(stage.rollout.seed, Unit.JOB, job.id, 0.5)
        assert (assigned.arm, assigned.key, assigned.share, assigned.step) == (arm, None, 0.5, 0)
        version = {Arm.CHAMPION: stage.champion, Arm.CANDIDATE: stage.candidate}[arm]
        assert (job.deployment_id, job.model_version) == (version.id, version.model_version)
        assert job.routing == {
            "rule": "rollout",
            "rollout": stage.rollout.id,
            "gate": "canary",
            "step": 0,
            "share": 0.5,
            "arm": arm,
            "unit": "job",
            "version": version.model_version,
        }
    assert 15 < Counter(job.model_version for job, _ in drawn)["2"] < 45
    assert [job.id for job, _ in drawn] == sorted(job.id for job, _ in drawn)


@pytest.mark.parametrize(("share", "arms"), [(0.999999, {"2"}), (0.000001, {"1"})], ids=["nearly all", "nearly none"])
def test_the_share_is_kept(stage: Stage, share: float, arms: set[str]) -> None:
    stage.rollout.share = share
    stage.session.flush()
    assert {job.model_version for job, _ in stage.submit_many(20)} == arms


@pytest.mark.parametrize("asked", ["tiny", "tiny@champion"])
def test_who_asks_for_the_champion_is_assigned(stage: Stage, asked: str) -> None:
    assert stage.submit(model=asked)[1] is not None


@pytest.mark.parametrize("asked", ["tiny:1", "tiny@challenger"])
def test_who_asks_for_a_version_gets_it_and_counts_nowhere(stage: Stage, asked: str) -> None:
    stage.session.get_one(RoutingPolicy, "tiny").challenger_id = stage.candidate.id
    stage.rollout.share = 0.999999 if asked == "tiny:1" else 0.000001
    stage.session.flush()
    job, assigned = stage.submit(model=asked)
    assert (job.model_version, assigned) == ("1" if asked == "tiny:1" else "2", None)


@pytest.mark.parametrize(
    "change",
    [{"state": "paused", "paused_in": "canary"}, {"state": "rolled_back"}, {"state": "offline"}, {"share": 0.0}],
    ids=str,
)
def test_a_rollout_that_gives_no_share_touches_no_job(stage: Stage, change: dict[str, Any]) -> None:
    stage.rollout.share = 0.999999
    for name, value in change.items():
        setattr(stage.rollout, name, value)
    stage.session.flush()
    job, assigned = stage.submit()
    assert (job.model_version, job.routing["rule"], assigned) == ("1", "alias", None)


def test_a_rollout_against_a_version_that_no_longer_serves_touches_no_job(stage: Stage) -> None:
    third = make_deployment(stage.session, version="3")
    stage.rollout.share = 0.999999
    stage.session.flush()
    job, assigned = stage.submit()
    assert (job.deployment_id, assigned) == (third.id, None)


def test_in_the_shadow_the_champion_serves_and_a_sample_is_noted(stage: Stage) -> None:
    stage.rollout.state, stage.rollout.share = "shadow", 0.3
    stage.session.flush()
    for job, assigned in stage.submit_many(40):
        assert (job.model_version, job.routing["rule"]) == ("1", "alias")
        sampled = place(stage.rollout.seed, Unit.JOB, job.id) < 0.3
        assert (assigned is not None) == sampled
        assert assigned is None or (assigned.stage, assigned.arm) == ("shadow", "champion")


def test_the_candidate_is_known_in_full(stage: Stage) -> None:
    stage.candidate.manifest, stage.candidate.first_ready_at = {"tokenizer.json": "a digest"}, utc_now()
    stage.session.flush()
    stage.session.refresh(stage.candidate)
    found = find(stage.session, "tiny").arms[1]
    for column in Deployment.__table__.columns:
        assert getattr(found, column.name) == getattr(stage.candidate, column.name), column.name


def sticky(stage: Stage, unit: str) -> None:
    stage.rollout.unit = unit
    stage.session.flush()


def test_a_user_stays_on_one_arm_and_their_name_is_not_kept(stage: Stage) -> None:
    sticky(stage, "user")
    arms = {}
    for name in ("ann", "bob", "cyd", "dee", "eve", "fay", "gus", "hal"):
        drawn = stage.submit_many(3, metadata={"user": name})
        keys = {(assigned.key, assigned.arm) for _, assigned in drawn if assigned}
        assert len(keys) == 1
        ((key, arms[name]),) = keys
        assert key is not None
        assert name not in key
        assert arms[name] == assign(stage.rollout.seed, Unit.USER, key, 0.5)
    assert set(arms.values()) == {"champion", "candidate"}


def test_equal_names_of_two_tenants_are_two_users() -> None:
    one, other = Who("job_1", "ten_1", "ann", "key_1"), Who("job_2", "ten_2", "ann", "key_1")
    assert one.key(Unit.USER, "seed") != other.key(Unit.USER, "seed")
    assert one.key(Unit.USER, "seed") == Who("job_3", "ten_1", "ann", "key_2").key(Unit.USER, "seed")
    assert one.key(Unit.USER, "seed") != one.key(Unit.USER, "another seed")
    unnamed = Who("job_1", "ten_1", None, "key_1")
    assert unnamed.key(Unit.USER, "seed") != Who("job_1", "ten_1", None, "key_2").key(Unit.USER, "seed")
    assert unnamed.key(Unit.USER, "seed") != Who("job_1", "ten_1", "key_1", None).key(Unit.USER, "seed")
    assert unnamed.key(Unit.TENANT, "seed") == one.key(Unit.TENANT, "seed")
    assert unnamed.key(Unit.JOB, "seed") is None


def test_a_tenant_stays_on_one_arm(stage: Stage) -> None:
    sticky(stage, "tenant")
    arms = {assigned.arm for _, assigned in stage.submit_many(10, metadata={"user": "ann"}) if assigned}
    assert len(arms) == 1


@pytest.mark.parametrize("share", [0.000001, 0.999999])
def test_what_only_the_champion_can_do_goes_there_and_counts_on_neither_arm(stage: Stage, share: float) -> None:
    stage.candidate.context_length, stage.rollout.share = 100, share
    stage.session.flush()
    job, assigned = stage.submit(params={"max_tokens": 150})
    assert (job.model_version, job.routing["rule"], assigned) == ("1", "alias", None)
    assert stage.submit(params={"max_tokens": 50})[1] is not None


@pytest.mark.parametrize("share", [0.000001, 0.999999])
def test_what_the_champion_cannot_do_is_refused_whatever_the_arm(stage: Stage, share: float) -> None:
    stage.candidate.context_length, stage.rollout.share = 10_000, share
    stage.session.flush()
    with pytest.raises(ContextLengthExceeded):
        stage.submit(params={"max_tokens": 5000})


@pytest.mark.parametrize("rate", [1, 2])
def test_a_budget_is_not_spent_on_another_price(stage: Stage, rate: int) -> None:
    for version, output in (("1", 1), ("2", rate)):
        given = {"currency": "EUR", "input": 1, "cached": 0, "output": output, "device_second": 0}
        given |= {"valid_from": utc_now() - timedelta(hours=1), "created_by": "a test"}
        stage.session.add(Price(id=f"prc_{version}", model_name="tiny", model_version=version, **given))
    stage.rollout.share = 0.999999
    stage.session.flush()
    assert stage.submit()[0].model_version == "2"
    limited, _ = stage.submit(budget={"amount": "5", "currency": "EUR"})
    assert limited.model_version == ("2" if rate == 1 else "1")
    set_budget(stage.session, stage.tenant.id, "EUR", Decimal(50))
    assert stage.submit()[0].model_version == ("2" if rate == 1 else "1")


def test_a_refused_job_leaves_no_assignment(stage: Stage) -> None:
    with pytest.raises(ContextLengthExceeded):
        stage.submit(params={"max_tokens": 5000})
    assert stage.session.scalars(select(Assignment)).all() == []


def test_a_rollout_costs_a_submit_no_statement_but_the_other_price(
    stage: Stage, count_statements: Callable[..., int]
) -> None:
    stage.submit_many(20)  # the tenant is awake on both versions
    during = count_statements(stage.session, stage.submit)
    stage.rollout.state = "rolled_back"
    stage.session.flush()
    assert during == count_statements(stage.session, stage.submit) + 1


@pytest.fixture
def count_statements() -> Callable[..., int]:
    def counted(session: Session, act: Callable[[], object]) -> int:
        seen: list[str] = []

        def note(*arguments: Any) -> None:
            seen.append(json.dumps(str(arguments[2])))

        connection = session.connection()
        event.listen(connection, "before_cursor_execute", note)
        try:
            act()
        finally:
            event.remove(connection, "before_cursor_execute", note)
        return len(seen)

    return counted
