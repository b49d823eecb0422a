"""What a submit asks the database and when: before its transaction what takes long, in it as little as can be."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from penstock.app import create_app
from penstock.db import Database
from penstock.errors import ModelNotFound
from penstock.jobs.models import Job
from penstock.registry.models import Deployment, RoutingPolicy
from penstock.rollouts.models import Assignment, Rollout
from penstock.routing.recent import RecentRoutes
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import event, select

from tests.factories import WordCounter, make_deployment, make_rollout, make_tenant, submit_job
from tests.platform.api.conftest import BODY, Caller


class Onlooker(WordCounter):
    """Counts a word of version 2 twice; notes of each count the version, and the connections that are in use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.counted: list[tuple[str, int]] = []

    def count(self, deployment: Deployment, job_input: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> int:
        self.counted.append((deployment.model_version, self._database.engine.pool.checkedout()))  # type: ignore[attr-defined]  # of a QueuePool
        return super().count(deployment, job_input, tools) * int(deployment.model_version)


@pytest.fixture
def prompts(database: Database) -> Onlooker:
    return Onlooker(database)


@pytest.fixture
def app(settings: Settings, database: Database, redis: Redis, prompts: Onlooker) -> Iterator[Flask]:
    app = create_app(settings, prompts=prompts, database=database, redis=redis)
    yield app
    app.extensions["penstock"].stop_streams()
    app.extensions["penstock"].live.join()


@contextmanager
def told(database: Database) -> Iterator[list[str]]:
    """What is sent to the database meanwhile, and how SQLAlchemy came by it."""
    sent: list[str] = []

    def note(_: object, __: object, statement: str, ___: object, context: Any, ____: object) -> None:
        sent.append(f"{statement.split()[0]} {context.cache_hit.name}")

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def test_a_submit_reads_three_times_and_writes_once_and_compiles_nothing(database: Database) -> None:
    """How many wait (which a process that knows does not ask), where it goes, for how much; what wakes the tenant
    comes with the first.
    """
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        submit_job(session, tenant)
    with database.transaction() as session:
        submit_job(session, tenant)
    with told(database) as sent, database.transaction() as session:
        submit_job(session, tenant)
    assert sent == ["SELECT CACHE_HIT", "SELECT CACHE_HIT", "SELECT CACHE_HIT", "WITH CACHE_HIT"]


def test_a_prompt_is_counted_while_no_connection_is_held(
    caller: Caller, deployment: Deployment, prompts: Onlooker
) -> None:
    caller.submit()
    assert prompts.counted == [("1", 0)]


def test_a_champion_that_moves_meanwhile_is_judged_by_its_own_tokenizer(
    database: Database, caller: Caller, deployment: Deployment, prompts: Onlooker
) -> None:
    """The process still prepares for the old one: the transaction finds the new one and counts anew."""
    caller.submit()
    with database.transaction() as session:
        after = make_deployment(session, version="2")
    job_id = caller.submit()
    document = caller.get(f"/v1/jobs/{job_id}").json
    assert (document["model_version"], document["usage"]["prompt_tokens"]) == ("2", 4)
    assert [version for version, _ in prompts.counted] == ["1", "1", "2"]
    with database.transaction() as session:
        assert session.scalars(select(Job.deployment_id).where(Job.id == job_id)).one() == after.id


@pytest.fixture
def rollout(database: Database, deployment: Deployment) -> Rollout:
    with database.transaction() as session:
        candidate = make_deployment(session, version="2", champion=False)
        return make_rollout(session, deployment, candidate)


def test_in_a_rollout_prompts_are_counted_for_both_versions_while_no_connection_is_held(
    caller: Caller, rollout: Rollout, prompts: Onlooker
) -> None:
    caller.submit()
    assert prompts.counted == [("1", 0), ("2", 0)]


def test_a_job_of_a_rollout_says_why_and_is_assigned_once_however_often_it_is_sent(
    database: Database, caller: Caller, rollout: Rollout
) -> None:
    answers = [caller.post("/v1/jobs", BODY, **{"Idempotency-Key": "once"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    with database.transaction() as session:
        (assigned,) = session.scalars(select(Assignment)).all()
    told = caller.get(f"/v1/jobs/{assigned.job_id}").json["routing"]
    assert (told["rule"], told["rollout"], told["arm"]) == ("rollout", rollout.id, assigned.arm)
    assert answers[1].json["routing"] == told


def test_a_model_that_is_gone_is_refused_though_it_was_there_a_moment_ago(
    database: Database, caller: Caller, deployment: Deployment
) -> None:
    caller.submit()
    with database.transaction() as session:
        policy = session.get_one(RoutingPolicy, "tiny")
        policy.champion_id = policy.champion_since = None
    assert caller.post("/v1/jobs", BODY).json["code"] == "model_not_found"


def test_what_is_remembered_of_routes_is_forgotten_within_a_second(database: Database) -> None:
    now = [50.0]
    routes = RecentRoutes(database, clock=lambda: now[0])
    with pytest.raises(ModelNotFound):
        routes.of("tiny")
    with database.transaction() as session:
        first = make_deployment(session)
    assert routes.of("tiny").deployment.id == first.id
    with database.transaction() as session:
        second = make_deployment(session, version="2")
    now[0] += 0.9
    assert routes.of("tiny").deployment.id == first.id
    now[0] += 0.2
    assert routes.of("tiny").deployment.id == second.id


def test_a_job_is_kept_as_it_was_sent(database: Database, caller: Caller, deployment: Deployment) -> None:
    """It travels to PostgreSQL as one JSON document: nothing of it may change on the way, nor come back otherwise."""
    asked = {
        "model": "tiny",
        "input": {"prompt": 'quotes " and \\ and \u2028 and \U0001f600 and \u00e9'},
        "params": {
            "response_format": {
                "type": "json_schema",
                "schema": {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "integer"}}},
            },
            "seed": 2**63 - 1,
            "max_tokens": 5,
        },
        "class": "batch",
        "priority": -7,
        "deadline": "2099-01-31T12:00:00.123456Z",
        "budget": {"tokens": 100},
        "tags": ["a, b", '"{}"', "null"],
        "metadata": {"k": "v\twith tab", "": "\U0001f600"},
        "webhook": {"url": "http://127.0.0.1:9/hook?x=%20", "events": []},
    }
    answer = caller.post("/v1/jobs", asked)
    assert answer.status_code == 202, answer.text
    told_at_once = answer.json
    assert told_at_once["input"] == asked["input"]
    assert told_at_once["deadline"] == "2099-01-31T12:00:00.123Z"
    assert {name: told_at_once[name] for name in ("priority", "budget", "tags", "metadata", "webhook")} == {
        name: asked[name] for name in ("priority", "budget", "tags", "metadata", "webhook")
    }
    assert list(told_at_once["params"]["response_format"]["schema"]["properties"]) == ["z", "a"]
    kept = caller.get(f"/v1/jobs/{told_at_once['id']}").json
    assert {name: kept[name] for name in told_at_once} == told_at_once
    assert list(kept["params"]["response_format"]["schema"]["properties"]) == ["z", "a"]
    with database.transaction() as session:
        job = session.get_one(Job, told_at_once["id"])
        assert (job.seed, job.retry_of, job.terms, job.state, job.last_event) == (2**63 - 1, None, None, "queued", 1)
        assert job.deadline == datetime(2099, 1, 31, 12, microsecond=123456, tzinfo=UTC)
        assert session.scalar(select(Job.terms.is_(None)))  # null, and not JSON's null
