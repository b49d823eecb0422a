"""Claiming and preparing, on a real database and a real Redis; the engine takes requests and never answers."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.broker import make_redis
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import Append, Journal, JournalEntry
from penstock.jobs.lease import Held, Progress
from penstock.jobs.models import Event, Job, JobRun
from penstock.jobs.states import RunOutcome
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.rollouts.rerouting import Way, reroute
from penstock.settings import Settings
from penstock.usage.spent import Spent
from penstock_worker.bridge import Bridge
from penstock_worker.held import HeldJobs
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec, Share, StepReport
from penstock_worker.results import Results
from penstock_worker.running import Lost, RunningJob
from penstock_worker.serving import Serving
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import select

from tests.factories import make_deployment, make_tenant, submit_job
from tests.patience import eventually


@dataclass
class Server:
    """A deployment whose engine has room for two jobs."""

    deployment_id: str
    tokenizer: ModelTokenizer
    bridge: Bridge
    finished: list[str] = field(default_factory=list)

    def note_finished(self) -> None:
        self.finished.append(self.deployment_id)


class House:
    """What a worker has around `Serving`, in this process."""

    def __init__(self, database: Database, redis: Redis, tokenizer: ModelTokenizer) -> None:
        self.database, self.tokenizer = database, tokenizer
        self.journal = Journal(redis, "test")
        self.writer = JournalWriter(self.journal, linger_seconds=60)
        self.held = HeldJobs()
        self.servers: list[Server] = []
        self.serving = Serving(
            worker_id="wrk_a",
            database=database,
            journal=self.journal,
            writer=self.writer,
            held=self.held,
            results=Results(database, self.writer, threading.Event(), max_own_crashes=3),
            ready_servers=lambda: self.servers,
            lease_seconds=60,
        )
        with database.transaction() as session:
            self.tenant: Tenant = make_tenant(session)

    def deploy(self, name: str = "tiny") -> Server:
        with self.database.transaction() as session:
            deployment = make_deployment(session, name)
        bridge = Bridge(EngineSpec("/nowhere", 2), self.writer, places=2, stall_seconds=60)
        bridge._report = StepReport(0, 0, 2)  # as an engine that has just become ready
        self.servers.append(Server(deployment.id, self.tokenizer, bridge))
        return self.servers[-1]

    def submit(self, model: str = "tiny", **body: Any) -> str:
        with self.database.transaction() as session:
            return submit_job(session, self.tenant, model=model, **body).id

    def row(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)

    def answer(self, server: Server) -> threading.Thread:
        thread = threading.Thread(target=self.serving.answer, args=(server.deployment_id,), daemon=True)
        thread.start()
        return thread

    def running(self) -> list[RunningJob]:
        """The jobs that have reached the engine."""
        return [job for job, bridge in self.held.snapshot() if job.request_id in bridge._jobs]

    def let_go(self) -> None:
        """End whatever runs, as if its lease were lost."""
        for job, _ in self.held.snapshot():
            job.end(Lost())
            self.writer.mark(job)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(model_folder)


@pytest.fixture
def house(database: Database, redis: Redis, tokenizer: ModelTokenizer) -> Iterator[House]:
    house, stop = House(database, redis, tokenizer), threading.Event()
    writer = threading.Thread(target=house.writer.run, args=(stop,))
    writer.start()
    yield house
    house.serving.closing.set()
    house.let_go()
    eventually(lambda: len(house.held) == 0, "the threads")
    stop.set()
    writer.join()


def run_reasons(database: Database) -> list[tuple[str | None, str | None]]:
    with database.transaction() as session:
        return [(run.outcome, run.reason) for run in session.scalars(select(JobRun).order_by(JobRun.fence))]


def test_what_begins_as_the_last_one_did_is_claimed_first(house: House) -> None:
    server = house.deploy()
    house.submit(input={"prompt": "the same beginning"})
    house.answer(server)
    eventually(lambda: len(house.held) == 1, "a running job")
    house.submit(input={"prompt": "something else"})
    alike = house.submit(input={"prompt": "the same beginning"})
    house.answer(server)
    eventually(lambda: len(house.held) == 2, "two running jobs")
    assert alike in [job.id for job, _ in house.held.snapshot()]


def test_no_more_is_claimed_than_the_engine_admits(house: House) -> None:
    server = house.deploy()
    ids = [house.submit() for _ in range(4)]
    threads = [house.answer(server) for _ in range(4)]
    eventually(lambda: len(house.held) == 2, "two running jobs")
    eventually(lambda: sum(thread.is_alive() for thread in threads) == 2, "the return of the others")
    assert [house.row(job_id).state for job_id in ids] == ["running", "running", "queued", "queued"]


def test_a_thread_serves_every_deployment_in_turn(house: House) -> None:
    first, second = house.deploy("one"), house.deploy("two")
    for model in ("one", "one", "two", "two"):
        house.submit(model)
    house.answer(first)
    order: list[str] = []
    while len(order) < 4:
        job, _ = eventually(house.held.snapshot, "a job")[0]
        if job.id not in order:
            order.append(job.id)
        house.let_go()
    served = [house.row(job_id).deployment_id for job_id in order]
    assert served == [first.deployment_id, second.deployment_id] * 2


def test_a_job_claimed_while_the_worker_hands_back_goes_back_too(house: House, database: Database) -> None:
    server = house.deploy()
    house.serving.handing_back.set()
    job_id = house.submit()
    assert house.serving._serve_next(server.deployment_id) is not None
    assert house.row(job_id).state == "queued"
    assert run_reasons(database) == [(RunOutcome.HANDED_BACK, "the worker is stopping")]
    assert server.bridge.free_places == 2


def test_a_job_claimed_for_an_engine_that_has_just_gone_goes_back(house: House, database: Database) -> None:
    server = house.deploy()
    reserve = server.bridge.reserve

    def reserve_and_crash() -> bool:
        reserved = reserve()
        server.bridge._closed = True
        return reserved

    server.bridge.reserve = reserve_and_crash  # type: ignore[method-assign]  # the crash falls into the claim
    job_id = house.submit()
    house.serving._serve_next(server.deployment_id)
    assert house.row(job_id).state == "queued"
    assert run_reasons(database) == [(RunOutcome.HANDED_BACK, "the engine is being restarted")]


def test_messages_that_the_template_refuses_fail_the_job_with_the_field(house: House) -> None:
    server = house.deploy()
    job_id = house.submit(input={"messages": [{"role": "assistant", "content": "I begin"}]})
    house.tokenizer._chat_template, kept = None, house.tokenizer._chat_template
    try:
        house.serving._serve_next(server.deployment_id)
    finally:
        house.tokenizer._chat_template = kept
    row = house.row(job_id)
    assert row.state == "failed"
    assert row.error is not None
    assert row.error["code"] == "validation_failed"
    assert server.bridge.free_places == 2


def test_without_redis_a_job_goes_back(
    settings: Settings, database: Database, tokenizer: ModelTokenizer, redis: Redis
) -> None:
    """Its journal may hold tokens that were sent: they must be read before it goes on."""
    away = make_redis(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")}))
    house, stop = House(database, away, tokenizer), threading.Event()
    writer = threading.Thread(target=house.writer.run, args=(stop,))
    writer.start()
    server = house.deploy()
    job_id = house.submit()
    house.serving._serve_next(server.deployment_id)
    stop.set()
    writer.join()
    assert house.row(job_id).state == "queued"
    assert run_reasons(database) == [(RunOutcome.HANDED_BACK, "Redis does not answer (ConnectionError)")]


@pytest.mark.parametrize(("in_redis", "in_postgresql", "wanted"), [(5, 3, 5), (2, 4, 4), (0, 0, 0)])
def test_the_longer_of_the_two_journals_is_taken_over(
    house: House, database: Database, in_redis: int, in_postgresql: int, wanted: int
) -> None:
    server = house.deploy()
    job_id = house.submit()
    entries = [JournalEntry(0, at, 20 + at, "", None, 1) for at in range(max(in_redis, in_postgresql))]
    with database.transaction() as session:
        first = lease.claim(session, worker_id="wrk_b", deployment_id=server.deployment_id, lease_seconds=60)
        assert first is not None
        lease.checkpoint(session, [Progress(Held(job_id, 1), entries[:in_postgresql], None)])
    house.journal.open(job_id, 1)
    house.journal.append([Append(job_id, 1, 0, entries[:in_redis])])
    with database.transaction() as session:
        lease.hand_back(session, Held(job_id, 1), RunOutcome.LEASE_LOST, "silent", max_own_crashes=3)

    house.answer(server)
    (job,) = eventually(house.running, "the second run")
    assert job.entries == house.journal.read(job_id) == entries[:wanted]
    assert job.choices[0].token_ids == [20 + at for at in range(wanted)]
    rewound = house.row(job_id).last_event == 5  # queued, running, requeued, running, rewound
    assert rewound == (in_redis < in_postgresql)


def test_what_another_version_generated_is_void(house: House, database: Database) -> None:
    """The version was rolled back, and its jobs begin anew: Redis still has what readers were shown."""
    tried, server = house.deploy("tried"), house.deploy()
    job_id = house.submit("tried@champion")
    with database.transaction() as session:
        assert lease.claim(session, worker_id="wrk_b", deployment_id=tried.deployment_id, lease_seconds=60)
    house.journal.open(job_id, 1)
    house.journal.append([Append(job_id, 1, 0, [JournalEntry(0, at, 20 + at, "", None, 1) for at in range(3)])])
    with database.transaction() as session:
        source, target = (session.get_one(Deployment, each.deployment_id) for each in (tried, server))
        reroute(session, Way(source, target, "rol_1", "rolled back", anew=True))

    house.answer(server)
    (job,) = eventually(house.running, "the second run")
    assert job.entries == house.journal.read(job_id) == []
    with database.transaction() as session:
        told = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.number)).all()
    assert [event.type for event in told][2:] == ["job.requeued", "job.rerouted", "job.running", "output.rewound"]
    assert told[-1].data == {"position": 0}


def hand_back_after(house: House, server: Server, job_id: str, fence: int, spent: Spent, words: int = 0) -> None:
    """Another worker runs the job for a while and gives it back."""
    entries = [JournalEntry(0, at, 20 + at, "", None, fence) for at in range(words)]
    with house.database.transaction() as session:
        lease.claim(session, worker_id="wrk_b", deployment_id=server.deployment_id, lease_seconds=60)
        lease.checkpoint(session, [Progress(Held(job_id, fence), entries, None)])
        lease.hand_back(session, Held(job_id, fence), RunOutcome.HANDED_BACK, "", max_own_crashes=3, spent=spent)


def charged(job: RunningJob, *tokens: int) -> float:
    """Of steps in which the run computes so many tokens, a second each: those that are charged."""
    report = StepReport(1, 0, 2)
    for count in tokens:
        job.meter.take(Share("a", count, 0, float(count)), report, None, None)
    return job.meter.charged_seconds


def test_what_was_computed_of_a_prompt_before_it_was_handed_back_is_charged_once(house: House) -> None:
    """The runs get 60 and 50 tokens into the prompt; the third, which finds 40 of it cached, computes the rest."""
    server, job_id = house.deploy(), house.submit()
    hand_back_after(house, server, job_id, 1, Spent(cached_tokens=10, computed_tokens=50, device_seconds=5))
    hand_back_after(house, server, job_id, 2, Spent(computed_tokens=50, recomputed_tokens=50, device_seconds=5))
    house.answer(server)
    (job,) = eventually(house.running, "the third run")
    job.meter.cached_tokens = 40
    assert charged(job, 16) == 0
    assert charged(job, 16, 16) == 28
    assert job.meter.spent.recomputed_tokens == 20


@pytest.mark.parametrize(("computed", "paid"), [(60, 0), (0, 70)])
def test_what_leads_back_to_the_last_token_is_charged_once(house: House, computed: int, paid: int) -> None:
    """By the run that was handed back, if it had computed any of it."""
    server, job_id = house.deploy(), house.submit()
    spent = Spent(cached_tokens=0, computed_tokens=computed, device_seconds=6)
    hand_back_after(house, server, job_id, 1, spent, words=5)
    house.answer(server)
    (job,) = eventually(house.running, "the second run")
    assert charged(job, 70) == paid
    job.meter.note_token(1.0)
    assert charged(job, 1) == paid + 1


def test_a_later_holder_in_redis_ends_the_run_unwritten(house: House, database: Database) -> None:
    server = house.deploy()
    job_id = house.submit()
    house.journal.open(job_id, 9)
    house.serving._serve_next(server.deployment_id)
    assert house.row(job_id).state == "running"  # not ours to say anything about: its lease runs out
    assert run_reasons(database) == [(None, None)]
