"""The heartbeat on a real database: leases live by progress, and what it learns reaches the jobs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from celery import Celery
from penstock.db import Database
from penstock.jobs import lease, services
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.hosting_services import WorkerCard, register_worker, remove_worker
from penstock.registry.models import Worker
from penstock.registry.tokenizer import ModelTokenizer
from penstock.settings import Settings
from penstock_worker.bridge import Bridge
from penstock_worker.doorbells import Doorbells
from penstock_worker.heartbeat import Heartbeat
from penstock_worker.held import HeldJobs
from penstock_worker.hosting import Host
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.messages import EngineSpec
from penstock_worker.running import Finished, Lost, RunningJob
from redis import Redis

from tests.factories import make_deployment, make_tenant, submit_job
from tests.patience import eventually


class Pulse:
    """A heartbeat with one held job, in this process; the engine is one that never spoke."""

    def __init__(self, settings: Settings, database: Database, redis: Redis, celery: Celery, folder: Path) -> None:
        settings = settings.model_copy(update={"lease_seconds": 1.5, "checkpoint_seconds": 0.1})
        self.database = database
        self.card = WorkerCard("wrk_a", "test", os.getpid(), "cpu", 4)
        with database.transaction() as session:
            deployment = make_deployment(session)
            submit_job(session, make_tenant(session))
            register_worker(session, self.card)
            begun = time.monotonic()
            claim = lease.claim(session, worker_id=self.card.id, deployment_id=deployment.id, lease_seconds=1.5)
        assert claim is not None
        self.job = RunningJob(claim, claimed_at=begun, lease_until=begun + 1.5)
        self.job.restore([], ModelTokenizer.from_folder(folder), [1, 2, 3])
        self.held = HeldJobs()
        self.writer = JournalWriter(Journal(redis, "test"), linger_seconds=60)
        self.heartbeat = Heartbeat(settings, self.card, database, self.held, self.writer)
        doorbells = Doorbells(celery)
        self.host = Host(self.card.id, settings, database, self.writer, doorbells, changed=self.heartbeat.wake)

    @contextmanager
    def beating(self, *, stall_seconds: float) -> Iterator[None]:
        bridge = Bridge(EngineSpec("/nowhere", 4), self.writer, places=4, stall_seconds=stall_seconds)
        bridge._jobs[self.job.request_id] = self.job  # an engine stands still only where it has work
        stop = threading.Event()
        thread = threading.Thread(target=self.heartbeat.run, args=(self.host, stop))
        with self.held.holding(self.job, bridge):
            thread.start()
            try:
                yield
            finally:
                stop.set()
                self.heartbeat.wake()
                thread.join()

    def row(self) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, self.job.id)

    def expiry(self) -> datetime | None:
        return self.row().lease_expires_at


@pytest.fixture
def pulse(settings: Settings, database: Database, redis: Redis, celery_app: Celery, model_folder: Path) -> Pulse:
    return Pulse(settings, database, redis, celery_app, model_folder)


def test_the_lease_is_renewed_while_the_engine_is_well(pulse: Pulse) -> None:
    before, until = pulse.expiry(), pulse.job.lease_until
    assert before is not None
    with pulse.beating(stall_seconds=60):
        eventually(lambda: (now := pulse.expiry()) is not None and now > before, "a renewal")
        eventually(lambda: pulse.job.lease_until > until, "our knowledge of it")
    assert pulse.job.ending is None


def test_the_lease_runs_out_when_the_engine_stands_still(pulse: Pulse) -> None:
    before = pulse.expiry()
    with pulse.beating(stall_seconds=0):
        time.sleep(1.0)  # two renewals would have come
        assert pulse.expiry() == before


def test_a_job_that_another_has_is_let_go(pulse: Pulse) -> None:
    with pulse.database.transaction() as session:
        lease.hand_back(session, pulse.job.held, RunOutcome.LEASE_LOST, "silent", max_own_crashes=3)
    with pulse.beating(stall_seconds=60):
        eventually(lambda: pulse.job.ending, "the loss")
    assert pulse.job.ending == Lost()


def test_a_cancel_ends_the_run_with_its_output(pulse: Pulse) -> None:
    with pulse.database.transaction() as session:
        services.cancel(session, pulse.job.job.tenant_id, pulse.job.id)
    with pulse.beating(stall_seconds=60):
        eventually(lambda: pulse.job.ending, "the end")
    assert pulse.job.ending == Finished(JobState.CANCELLED)
    assert pulse.job.entries[-1].finish_reason == "cancelled"


def test_tokens_are_copied_to_postgresql(pulse: Pulse) -> None:
    pulse.job.entries += [JournalEntry(0, at, at, "x", None, 1) for at in range(4)]
    pulse.job.first_token_seconds = 0.25
    with pulse.beating(stall_seconds=60):
        eventually(lambda: pulse.job.checkpointed == 4, "the checkpoint")
    with pulse.database.transaction() as session:
        assert lease.load_checkpoint(session, pulse.job.id) == pulse.job.entries
    assert pulse.row().first_token_at is not None


def test_a_worker_that_was_taken_for_dead_registers_again(pulse: Pulse) -> None:
    with pulse.database.transaction() as session:
        remove_worker(session, pulse.card.id)

    def found() -> bool:
        with pulse.database.transaction() as session:
            return session.get(Worker, pulse.card.id) is not None

    with pulse.beating(stall_seconds=60):
        eventually(found, "the worker's row")


def test_of_two_runs_of_one_job_only_the_newest_keeps_its_lease(pulse: Pulse) -> None:
    """The lease ran out unnoticed, and this very worker claimed the job again."""
    with pulse.database.transaction() as session:
        deployment_id = session.get_one(Job, pulse.job.id).deployment_id
        lease.hand_back(session, pulse.job.held, RunOutcome.LEASE_LOST, "silent", max_own_crashes=3)
        begun = time.monotonic()
        claim = lease.claim(session, worker_id=pulse.card.id, deployment_id=deployment_id, lease_seconds=1.5)
    assert claim is not None
    again = RunningJob(claim, claimed_at=begun, lease_until=begun + 1.5)
    bridge = Bridge(EngineSpec("/nowhere", 4), pulse.writer, places=4, stall_seconds=60)
    with pulse.held.holding(again, bridge), pulse.beating(stall_seconds=60):
        eventually(lambda: again.lease_until > begun + 1.5, "the renewal of the newer run")
    assert pulse.job.ending == Lost()
    assert again.ending is None
