"""What `penstock demo rollout` is made of, over the real application: its traffic, its timeline, its account."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import click
import pytest
from penstock import Client
from penstock.auth.services import Scope, create_api_key
from penstock.cli import demo_story
from penstock.cli.demo_model import assets
from penstock.cli.demo_rollout import (
    CALIBRATING,
    CAUTIOUS,
    FAILURE,
    HASTY,
    HELD_OUT,
    STRUCK,
    Acts,
    _account,
    _last_line,
)
from penstock.cli.demo_story import Ending, Operator
from penstock.cli.demo_traffic import Outcome, Question, Traffic, as_lines, questions
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.lead import take
from penstock.rollouts.models import Rollout
from penstock.rollouts.policy import Policy
from penstock.rollouts.services import conclude
from penstock.rollouts.statistics import Tally
from rich.console import Console
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, make_worker, submit_job
from tests.platform.api.conftest import Worker

HARMED = Evidence(step_units=60, units=Tally().plus(0.25, 20, 60), failures=Tally().plus(0.25, 12, 0))
RIGHT, WRONG, BAD = Question("a plain one", "right"), Question("a hard one", "right"), Question("in SEK", "right")


def answer_one(worker: Worker) -> bool:
    """Take the next job and end it as its invoice has it; whether there was one."""
    with worker.database.transaction() as session:
        claim = lease.claim(session, worker_id=worker.id, deployment_id=worker.deployment_id, lease_seconds=30)
        text = claim.job.input["messages"][0]["content"] if claim else ""
    if claim is None:
        return False
    worker.held, worker.entries = Held(claim.job.id, claim.fence), []
    worker.journal.open(claim.job.id, claim.fence)
    if text != BAD.text:
        worker.write("right" if text == RIGHT.text else "wrong")
        worker.finish()
        return True
    with worker.database.transaction() as session:
        error = {"code": FAILURE, "message": "not a number"}
        lease.finish(session, worker.held, Finish(JobState.FAILED, [], 2, error=error))
    worker.journal.announce([claim.job.id])
    return True


@contextmanager
def answering(worker: Worker) -> Iterator[None]:
    """Jobs are ended one after the other while the block runs."""
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            if not answer_one(worker):
                stop.wait(0.01)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_traffic_asks_judges_and_keeps_what_became_of_each(
    connected: Client, worker: Worker, database: Database
) -> None:
    with answering(worker), Traffic(connected, "tiny", [RIGHT, WRONG, BAD], at_a_time=2) as traffic:
        traffic.await_sent(3)
    outcomes = {outcome.question.text: outcome for outcome in traffic.outcomes}
    right, wrong, bad = (outcomes[each.text] for each in (RIGHT, WRONG, BAD))
    assert [(each.succeeded, each.exact, each.failed_with) for each in (right, wrong, bad)] == [
        (True, True, None),
        (True, False, None),
        (False, False, FAILURE),
    ]
    assert {each.version for each in traffic.outcomes} == {"1"}
    assert traffic.sent == len(traffic.outcomes) >= 3
    with database.transaction() as session:
        users = [job.user_metadata["user"] for job in session.scalars(select(Job))]
    assert len(set(users)) == len(users) == traffic.sent, "each is another customer's, and none is lost"
    assert right.job is not None
    assert [each.score for each in connected.jobs.feedback(right.job.id)] == [1.0]


def test_traffic_that_is_refused_says_why_and_whoever_waits_may_give_up(connected: Client) -> None:
    class Enough(Exception):
        pass

    def alive() -> None:
        raise Enough

    with Traffic(connected, "unknown", [RIGHT], at_a_time=1) as traffic:
        traffic.await_sent(1)
        with pytest.raises(Enough):
            traffic.await_sent(10**9, alive)
    refused = traffic.outcomes[0]
    assert (refused.job, refused.version, refused.succeeded) == (None, None, False)
    assert (refused.trouble or "").startswith("model_not_found: ")


class Stage:
    """An operator of the real application, and a clock that goes on when the operator waits."""

    def __init__(self, url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database, self.now = database, 0.0
        with database.transaction() as session:
            self.champion = make_deployment(session)
            make_worker(session, make_deployment(session, version="2", champion=False))
            self.tenant = make_tenant(session)
            given: dict[str, Any] = {"name": "demo", "scopes": (Scope.OPERATOR,), "environment": "test"}
            key = create_api_key(session, tenant_id=self.tenant.id, **given)[1]
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(demo_story, "time", clock)
        self.said = io.StringIO()
        self.operator = Operator(url, key, Console(file=self.said, width=200), began=0.0)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now < 1.0:
            return
        with self.database.transaction() as session:  # what was registered is hosted after a while
            if not session.scalar(select(Rollout.id)):
                make_worker(session, make_deployment(session, version="3", champion=False))

    def judge(self, rollout_id: str, evidence: Evidence) -> None:
        with self.database.transaction() as session:
            lead = take(session, "rollouts", "test", 600)
            assert lead
            conclude(session, lead, rollout_id, session.get_one(Rollout, rollout_id).fence, evidence)


@pytest.fixture
def stage(url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(url, database, monkeypatch)


def test_the_timeline_tells_each_move_and_what_it_fell_on(stage: Stage) -> None:
    rollout_id = stage.operator.start("tiny", "3", HASTY)
    assert stage.now >= 1.0, "it was not hosted at first"
    with stage.database.transaction() as session:
        waiting = [submit_job(session, stage.tenant) for _ in range(30)]
    tried = sum(job.model_version == "3" for job in waiting)
    steps = iter((lambda: None, lambda: stage.judge(rollout_id, HARMED)))
    ending = stage.operator.follow(rollout_id, "3", lambda: next(steps, lambda: None)())
    assert (ending.version, ending.status, ending.rerouted) == ("3", "rolled_back", tried)
    assert ending.seconds >= 0
    first, second, why = stage.said.getvalue().splitlines()
    assert first.endswith(" s  version 3: canary step 1")
    assert second.endswith(" s  version 3: canary step 1 -> rolled back")
    assert why.startswith("          errors: 12 of 12 are the candidate's")


def test_a_start_that_is_refused_and_a_gate_that_never_decides_end_it(stage: Stage) -> None:
    rollout_id = stage.operator.start("tiny", "2", HASTY)
    with pytest.raises(click.ClickException, match=r"no rollout of version 2: .* is under way"):
        stage.operator.start("tiny", "2", HASTY)
    stage.judge(rollout_id, Evidence())

    def long() -> None:
        stage.now += 200

    with pytest.raises(
        click.ClickException, match=r"nothing was decided in 300 s; .*0 of the 40 units of the candidate"
    ):
        stage.operator.follow(rollout_id, "2", long)


def test_its_policies_are_policies_and_its_invoices_are_enough() -> None:
    for document in (CAUTIOUS, HASTY):
        assert Policy.model_validate(document, strict=False).version
    asked = questions(assets() / "samples" / "held-out.jsonl")
    held_out = [each for each in asked if not each.holds(STRUCK)][:HELD_OUT]
    rest = asked[HELD_OUT * 2 :]
    assert (len(held_out), len(rest) >= CALIBRATING) == (HELD_OUT, True)
    assert any(each.holds(STRUCK) for each in rest), "nobody would send what the damaged version fails on"
    assert as_lines(held_out).count(b"\n") == HELD_OUT


ENDINGS = (Ending("2", "promoted", 60.0, 0), Ending("3", "rejected", 5.0, 0), Ending("3", "rolled_back", 7.04, 2))


def account(console: Console, acts: Acts, outcomes: list[Outcome]) -> tuple[bool, str]:
    traffic = SimpleNamespace(outcomes=outcomes)
    return _account(console, acts, traffic), _last_line(acts, traffic)  # type: ignore[arg-type]  # nothing else of it


def test_the_account_names_what_was_lost_and_the_last_line_how_it_ended(connected: Client, worker: Worker) -> None:
    with answering(worker), Traffic(connected, "tiny", [RIGHT, BAD], at_a_time=1) as traffic:
        traffic.await_sent(2)
    right, failed = traffic.outcomes[:2]
    assert failed.job is not None
    by_the_damage = Outcome(BAD, failed.job.model_copy(update={"model_version": "3"}))
    said = io.StringIO()
    acts = Acts(*ENDINGS, champion="2")
    told = account(Console(file=said, width=200), acts, [right, by_the_damage])
    assert told == (True, "rollout demo: promoted V2, rejected V3 offline, rolled back V3 after 1 jobs in 7.0 s")
    assert said.getvalue().splitlines() == [
        "version 1 served 1 jobs, 1 answers were right to the letter",
        "version 3 served 1 jobs, 0 answers were right to the letter",
        f"2 jobs: 1 succeeded, 1 failed by version 3's damage ({FAILURE}), 0 failed otherwise, 0 lost; "
        "2 waited for version 3 and were rerouted",
    ]
    for harm in (failed, Outcome(RIGHT, trouble="timeout: it took too long")):
        assert not account(Console(file=io.StringIO()), acts, [right, harm])[0], (
            "it failed on a sound version, or is lost"
        )
    otherwise = Acts(*ENDINGS, champion="1")
    assert not otherwise.as_wanted
    assert _last_line(otherwise, traffic).endswith("champion in MLflow: version 1")
