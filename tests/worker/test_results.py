"""How a run's end reaches PostgreSQL: once, fenced, and through outages."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.tokenizer import ModelTokenizer
from penstock.settings import Settings
from penstock.usage.models import UsageEntry
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.results import Results
from penstock_worker.running import Finished, GivenBack, RunningJob
from penstock_worker.worker_metrics import WorkerMetrics
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import select, text
from sqlalchemy.exc import DataError

from tests.factories import make_deployment, make_tenant, submit_job
from tests.patience import eventually
from tests.worker.proxy import Proxy

METRICS = WorkerMetrics().of("tiny", "1", "dep")


@pytest.fixture
def writer(redis: Redis) -> JournalWriter:
    return JournalWriter(Journal(redis, "test"), linger_seconds=60)


@pytest.fixture
def impatient() -> threading.Event:
    return threading.Event()


@pytest.fixture
def results(database: Database, writer: JournalWriter, impatient: threading.Event) -> Results:
    return Results(database, writer, impatient, max_own_crashes=3)


def claim(database: Database, tokenizer: ModelTokenizer, worker: str = "wrk_a") -> RunningJob:
    """The first waiting job, claimed, with three tokens of output."""
    with database.transaction() as session:
        deployment_id = session.scalars(select(Job.deployment_id).distinct()).one()
        claimed = lease.claim(session, worker_id=worker, deployment_id=deployment_id, lease_seconds=60)
    assert claimed is not None
    job = RunningJob(claimed, claimed_at=time.monotonic(), lease_until=time.monotonic() + 60)
    entries = [JournalEntry(0, at, at, f"t{at} ", None, claimed.fence) for at in range(3)]
    job.restore(entries, tokenizer, [1, 2, 3])
    return job


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(model_folder)


@pytest.fixture
def job(database: Database, tokenizer: ModelTokenizer) -> RunningJob:
    with database.transaction() as session:
        make_deployment(session)
        submit_job(session, make_tenant(session))
    return claim(database, tokenizer)


def stored(database: Database, job: RunningJob) -> Job:
    with database.transaction() as session:
        return session.get_one(Job, job.id)


def test_a_result_is_written_once(database: Database, results: Results, job: RunningJob) -> None:
    job.end(Finished(JobState.SUCCEEDED))
    results.write(job, METRICS)
    results.write(job, METRICS)  # as after a commit whose answer was lost
    assert stored(database, job).state == "succeeded"
    with database.transaction() as session:
        assert [entry.output_tokens for entry in session.scalars(select(UsageEntry))] == [3]


def test_a_holder_whose_job_was_taken_back_writes_nothing(
    database: Database, results: Results, job: RunningJob, tokenizer: ModelTokenizer
) -> None:
    with database.transaction() as session:
        lease.hand_back(session, job.held, RunOutcome.LEASE_LOST, "it fell silent", max_own_crashes=3)
    successor = claim(database, tokenizer, "wrk_b")
    for ending in (Finished(JobState.SUCCEEDED), GivenBack(RunOutcome.HANDED_BACK, "late")):
        job.ending = ending
        results.write(job, METRICS)
    row = stored(database, job)
    assert (row.state, row.fence, row.lease_holder) == ("running", successor.fence, "wrk_b")


def test_a_job_that_is_handed_back_leaves_every_token_in_postgresql(
    database: Database, results: Results, job: RunningJob
) -> None:
    job.end(GivenBack(RunOutcome.CRASHED, "the engine crashed"))
    results.write(job, METRICS)
    with database.transaction() as session:
        assert session.get_one(Job, job.id).state == "queued"
        assert lease.load_checkpoint(session, job.id) == job.entries
        assert session.scalars(select(JobRun.reason)).one() == "the engine crashed"


def test_one_jobs_fault_is_its_own(database: Database, results: Results, tokenizer: ModelTokenizer) -> None:
    """Three end at the same moment, one of them with text that PostgreSQL keeps nowhere."""
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        for _ in range(3):
            submit_job(session, tenant)
    jobs = [claim(database, tokenizer) for _ in range(3)]
    jobs[1].entries[0] = JournalEntry(0, 0, 0, "\x00", None, 1)
    for job in jobs:
        job.end(Finished(JobState.SUCCEEDED))
    with ThreadPoolExecutor(3) as pool:
        with results._ends._turn:
            written = [pool.submit(results.write, job, METRICS) for job in jobs]
            eventually(lambda: len(results._ends._waiting) == 3, "all three")
        errors = [each.exception(timeout=30) for each in written]
    assert [type(error) for error in errors] == [type(None), DataError, type(None)]
    assert [stored(database, job).state for job in jobs] == ["succeeded", "running", "succeeded"]


def test_results_of_one_moment_are_one_transaction(
    database: Database, results: Results, tokenizer: ModelTokenizer
) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        for _ in range(3):
            submit_job(session, tenant)
    jobs = [claim(database, tokenizer) for _ in range(3)]
    with database.transaction() as session:
        lease.hand_back(session, jobs[2].held, RunOutcome.LEASE_LOST, "it fell silent", max_own_crashes=3)
    for job in jobs:
        job.end(Finished(JobState.SUCCEEDED))
    with ThreadPoolExecutor(3) as pool:
        with results._ends._turn:
            written = [pool.submit(results.write, job, METRICS) for job in jobs]
            eventually(lambda: len(results._ends._waiting) == 3, "all three")
        for each in written:
            each.result(timeout=30)
    assert [stored(database, job).state for job in jobs] == ["succeeded", "succeeded", "queued"]
    with database.transaction() as session:
        assert len(set(session.scalars(text("SELECT xmin::text FROM usage_entry")))) == 1


@pytest.fixture
def cut_off(settings: Settings) -> Iterator[tuple[Proxy, Database]]:
    """A database whose line can be cut."""
    head, _, tail = settings.database_url.get_secret_value().rpartition(":")
    proxy = Proxy(int(tail.partition("/")[0]))
    address = SecretStr(f"{head}:{proxy.port}/{tail.partition('/')[2]}")
    database = Database(settings.model_copy(update={"database_url": address}))
    yield proxy, database
    database.close()
    proxy.close()


def test_a_result_waits_for_a_database_that_is_away(
    database: Database,
    writer: JournalWriter,
    impatient: threading.Event,
    job: RunningJob,
    cut_off: tuple[Proxy, Database],
) -> None:
    proxy, distant = cut_off
    distant.ping()
    proxy.cut()
    job.end(Finished(JobState.SUCCEEDED))
    thread = threading.Thread(
        target=Results(distant, writer, impatient, max_own_crashes=3).write, args=(job, METRICS), daemon=True
    )
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    proxy.mend()
    thread.join(30)
    assert stored(database, job).state == "succeeded"


def test_a_stopping_worker_leaves_the_result_to_the_reaper_when_the_database_is_away(
    database: Database,
    writer: JournalWriter,
    impatient: threading.Event,
    job: RunningJob,
    cut_off: tuple[Proxy, Database],
) -> None:
    proxy, distant = cut_off
    proxy.cut()
    job.end(Finished(JobState.SUCCEEDED))
    impatient.set()
    Results(distant, writer, impatient, max_own_crashes=3).write(job, METRICS)
    assert stored(database, job).state == "running"
