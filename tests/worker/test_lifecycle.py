"""Workers start, stop, die and freeze; engines stall and crash; services go away. No token is lost or said twice."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.db import Database
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.lease import load_checkpoint
from penstock.jobs.models import Event, Job
from penstock.jobs.states import RunOutcome
from penstock.registry.models import Deployment, Hosting, Worker
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import select

from tests.patience import PATIENCE_SECONDS, eventually
from tests.worker.conftest import Jobs, StartWorker, WorkerProcess, deploy, is_alive, is_ready
from tests.worker.proxy import Proxy
from tests.worker.world import DEMANDING, assert_same_output

pytestmark = pytest.mark.drill

# Among few candidates: a resumed run prefills what it decoded before, and the last bits of its sums may differ. Each
# candidate's edge is one more place where that could tip a sample (with all 768 it was seen once in some 25 runs).
KV_BYTES = 2**26
LONG = {"temperature": 1.0, "top_k": 3, "seed": 5, "ignore_eos": True, "max_tokens": 900}


@pytest.fixture
def journal(redis: Redis) -> Callable[[str], list[JournalEntry]]:
    return Journal(redis, "test").read


def in_flight(jobs: Jobs, journal: Callable[[str], list[JournalEntry]], job_id: str, tokens: int = 30) -> None:
    """Wait until the running job has so many tokens in its journal."""
    eventually(lambda: len(journal(job_id)) >= tokens, f"{tokens} tokens of {job_id}")
    assert jobs.get(job_id).state == "running", "too fast to be disturbed"


def output_of(job: Job) -> dict[str, Any]:
    assert job.state == "succeeded", job.error
    assert job.output is not None
    (choice,) = job.output["choices"]
    assert isinstance(choice, dict)
    return choice


def events(database: Database, job_id: str) -> list[str]:
    with database.transaction() as session:
        return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.number)))


def checkpoint_of(database: Database, job_id: str) -> list[JournalEntry]:
    with database.transaction() as session:
        return load_checkpoint(session, job_id)


def hostings(database: Database) -> dict[str, tuple[str, str | None]]:
    with database.transaction() as session:
        return {row.deployment_id: (row.state, row.error) for row in session.scalars(select(Hosting))}


def kv_of(database: Database) -> dict[str, int]:
    """What K and V of each version take, to the page."""
    with database.transaction() as session:
        return {row.deployment_id: row.stats.get("kv_bytes", 0) for row in session.scalars(select(Hosting))}


def assert_undisturbed(jobs: Jobs, journal: Callable[[str], list[JournalEntry]], job: Job, **params: Any) -> None:
    """The output is what one undisturbed run gives, and the journal holds each of its tokens once, in order."""
    output = output_of(job)
    entries = journal(job.id)
    assert [entry.index for entry in entries] == list(range(len(entries)))
    assert [entry.token_id for entry in entries] == [*output["token_ids"], None]
    assert "".join(entry.text for entry in entries) == output["text"]
    assert output == output_of(jobs.finished(jobs.submit(params=LONG | params)))


@pytest.mark.usefixtures("deployment")
def test_the_successor_of_a_killed_worker_goes_on_at_the_exact_token(
    database: Database, jobs: Jobs, journal: Callable[[str], list[JournalEntry]], start_worker: StartWorker
) -> None:
    first = start_worker()
    second = start_worker(wait=False)
    job_id = jobs.submit(params=LONG)
    in_flight(jobs, journal, job_id)
    (engine,) = first.children
    first.kill()
    seen = len(journal(job_id))
    eventually(lambda: not is_alive(engine), "the end of the dead worker's engine")
    eventually(lambda: is_ready(database, second), "the second worker")
    job = jobs.finished(job_id)
    assert_undisturbed(jobs, journal, job)
    lost, finished = jobs.runs(job_id)
    assert lost.outcome == RunOutcome.LEASE_LOST
    assert finished.resumed_at_position == seen
    assert job.own_crashes == 0
    assert "output.rewound" not in events(database, job_id)


@pytest.mark.usefixtures("deployment")
def test_the_successor_rebuilds_choices_penalties_structure_and_stop_strings(
    jobs: Jobs, journal: Callable[[str], list[JournalEntry]], start_worker: StartWorker
) -> None:
    """All at once in a worker that is killed; each job is then what it would have been."""
    first = start_worker()
    (engine,) = first.children
    undisturbed = {kind: jobs.finished(jobs.submit(params=params)) for kind, params in DEMANDING.items()}
    os.kill(engine, signal.SIGSTOP)
    ids = {kind: jobs.submit(params=params) for kind, params in DEMANDING.items()}
    eventually(lambda: all(jobs.get(job_id).state == "running" for job_id in ids.values()), "all to run")
    os.kill(engine, signal.SIGCONT)
    in_flight(jobs, journal, ids["choices"], tokens=90)
    first.kill()
    start_worker(wait=False)
    for kind, job_id in ids.items():
        job = jobs.finished(job_id)
        assert_same_output(job, undisturbed[kind])
        assert [run.outcome for run in jobs.runs(job_id)] == [RunOutcome.LEASE_LOST, RunOutcome.FINISHED]
        for choice in (job.output or {})["choices"]:
            own = [entry for entry in journal(job_id) if entry.choice == choice["index"] and entry.prompt is None]
            assert [entry.index for entry in own] == list(range(len(own)))
            assert [entry.token_id for entry in own] == [*choice["token_ids"], None]
            assert "".join(entry.text for entry in own) == choice["text"]


@pytest.mark.usefixtures("deployment")
def test_a_frozen_worker_that_wakes_up_writes_nothing(
    database: Database, jobs: Jobs, journal: Callable[[str], list[JournalEntry]], start_worker: StartWorker
) -> None:
    zombie = start_worker(worker_slots=1)
    successor = start_worker(wait=False)
    job_id = jobs.submit(params=LONG)
    in_flight(jobs, journal, job_id)
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        eventually(lambda: is_ready(database, successor), "the successor")
        job = jobs.finished(job_id)
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    eventually(lambda: "lease.lost" in zombie.log.read_text(), "the loss of the lease")
    assert job.fence == 2
    assert {entry.fence for entry in journal(job_id)} == {1, 2}
    assert jobs.get(job_id).output == job.output
    assert_undisturbed(jobs, journal, job)


@pytest.mark.usefixtures("deployment")
def test_worker_and_redis_lost_at_once_cost_at_most_the_last_second_and_readers_are_told(
    database: Database,
    redis: Redis,
    jobs: Jobs,
    journal: Callable[[str], list[JournalEntry]],
    start_worker: StartWorker,
) -> None:
    first = start_worker(checkpoint_seconds=0.05)
    job_id = jobs.submit(params=LONG)
    eventually(lambda: checkpoint_of(database, job_id), "a checkpoint")
    assert jobs.get(job_id).state == "running", "too fast to be disturbed"
    first.kill()
    redis.flushall()
    second = start_worker(wait=False)
    eventually(lambda: is_ready(database, second), "the second worker")
    job = jobs.finished(job_id)
    assert_undisturbed(jobs, journal, job)
    assert jobs.runs(job_id)[1].resumed_at_position > 0
    assert events(database, job_id).count("output.rewound") == 1


@pytest.mark.usefixtures("deployment")
def test_a_stopping_worker_lets_jobs_finish_for_a_while_and_hands_the_rest_back(
    database: Database, jobs: Jobs, journal: Callable[[str], list[JournalEntry]], start_worker: StartWorker
) -> None:
    worker = start_worker(worker_drain_seconds=3)
    (engine,) = worker.children
    long, short = jobs.submit(params=LONG), jobs.submit(params=LONG | {"max_tokens": 35})
    in_flight(jobs, journal, long)
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: jobs.get(short).state == "succeeded", "the short one's end")
    os.kill(engine, signal.SIGSTOP)  # so that the long one does not end
    eventually(lambda: jobs.get(long).state == "queued", "the long one's return")
    os.kill(engine, signal.SIGCONT)
    assert worker.process.wait(PATIENCE_SECONDS) == 0
    assert not is_alive(engine)
    assert (jobs.get(short).state, jobs.get(short).runs) == ("succeeded", 1)
    assert jobs.get(long).state == "queued"
    assert jobs.runs(long)[0].outcome == RunOutcome.HANDED_BACK
    with database.transaction() as session:
        assert session.scalars(select(Worker)).all() == []
    seen = len(journal(long))
    start_worker()
    job = jobs.finished(long)
    assert jobs.runs(long)[1].resumed_at_position == seen
    assert job.own_crashes == 0
    assert_undisturbed(jobs, journal, job)


@pytest.mark.usefixtures("deployment")
def test_a_stalled_engine_is_replaced(
    jobs: Jobs, journal: Callable[[str], list[JournalEntry]], start_worker: StartWorker
) -> None:
    worker = start_worker(engine_stall_seconds=1.5)
    job_id = jobs.submit(params=LONG)
    in_flight(jobs, journal, job_id)
    (engine,) = worker.children
    os.kill(engine, signal.SIGSTOP)
    job = jobs.finished(job_id)
    assert jobs.runs(job_id)[0].outcome == RunOutcome.CRASHED_ALONE
    assert jobs.runs(job_id)[0].reason == "the engine process took no step for 1.5 s"
    assert_undisturbed(jobs, journal, job)


@pytest.mark.usefixtures("deployment")
def test_only_the_job_at_fault_is_blamed_for_crashes(jobs: Jobs, start_worker: StartWorker) -> None:
    """Whenever the poison job is in the engine, the engine dies."""
    worker = start_worker(worker_slots=4, max_own_crashes=1)
    innocent = jobs.submit_many(["a", "b", "c"], params=LONG)
    poison = jobs.submit("poison", params=LONG)
    over = threading.Event()

    def assassin() -> None:
        while not over.wait(0.02):
            if jobs.get(poison).state == "running":
                for engine in worker.children:
                    os.kill(engine, signal.SIGKILL)

    thread = threading.Thread(target=assassin)
    thread.start()
    try:
        job = jobs.finished(poison)
    finally:
        over.set()
        thread.join()
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "engine_crashed"
    assert [jobs.finished(job_id).state for job_id in innocent] == ["succeeded"] * 3
    assert [jobs.get(job_id).own_crashes for job_id in [*innocent, poison]] == [0, 0, 0, 1]


@pytest.fixture
def proxies(settings: Settings, redis: Redis) -> Iterator[tuple[Proxy, Proxy]]:
    """In front of PostgreSQL and of Redis."""
    database_port = int(settings.database_url.get_secret_value().rpartition(":")[2].partition("/")[0])
    pair = Proxy(database_port), Proxy(redis.connection_pool.connection_kwargs["port"])
    yield pair
    for proxy in pair:
        proxy.close()


def through(proxy: Proxy, address: str) -> str:
    head, _, tail = address.rpartition(":")
    return f"{head}:{proxy.port}/{tail.partition('/')[2]}"


@pytest.mark.usefixtures("deployment")
def test_outages_of_redis_and_postgresql_are_waited_out(
    settings: Settings,
    jobs: Jobs,
    journal: Callable[[str], list[JournalEntry]],
    start_worker: StartWorker,
    proxies: tuple[Proxy, Proxy],
) -> None:
    database_proxy, redis_proxy = proxies
    start_worker(
        database_url=through(database_proxy, settings.database_url.get_secret_value()),
        redis_url=through(redis_proxy, settings.redis_url.get_secret_value()),
    )
    for proxy, seconds in ((redis_proxy, 1.0), (database_proxy, 4.0)):
        job_id = jobs.submit(params=LONG)
        in_flight(jobs, journal, job_id)
        proxy.cut()
        time.sleep(seconds)
        proxy.mend()
        job = jobs.finished(job_id)
        assert job.runs == 1
        eventually(lambda job_id=job_id: journal(job_id)[-1].finish_reason, "the whole journal")  # type: ignore[misc]
        assert_undisturbed(jobs, journal, job)


def test_versions_load_side_by_side_and_one_that_is_damaged_says_so(
    database: Database,
    deployment: Deployment,
    jobs: Jobs,
    start_worker: StartWorker,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    worker = start_worker(engine_kv_bytes=KV_BYTES)
    (old_engine,) = worker.children
    eventually(lambda: kv_of(database) == {deployment.id: KV_BYTES}, "the whole pool for the first")
    folder = tmp_path / "second"
    shutil.copytree(model_folder, folder)
    second = deploy(database, folder, version="2")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x01\x02\x03")

    eventually(lambda: hostings(database).get(second.id, ("", ""))[0] == "failed", "the failure")
    error = hostings(database)[second.id][1]
    assert error is not None
    assert "model.safetensors was altered" in error
    waiting = jobs.submit(params=LONG | {"max_tokens": 5})
    assert output_of(jobs.finished(jobs.submit(model="tiny:1", params=LONG | {"max_tokens": 5})))
    assert jobs.get(waiting).state == "queued"

    (folder / "model.safetensors").write_bytes(weights)
    assert jobs.finished(waiting).model_version == "2"
    assert len(worker.children) == 2
    eventually(lambda: kv_of(database) == {deployment.id: KV_BYTES // 2, second.id: KV_BYTES // 2}, "equal pools")
    with database.transaction() as session:
        session.merge(deployment).state = "retired"
    eventually(lambda: not is_alive(old_engine), "the end of the retired version's engine")
    eventually(lambda: list(hostings(database)) == [second.id], "the hosting to go")
    eventually(lambda: kv_of(database) == {second.id: KV_BYTES}, "the whole pool for who is left")
    assert output_of(jobs.finished(jobs.submit(params=LONG | {"max_tokens": 5})))


@pytest.mark.usefixtures("deployment")
def test_a_worker_hosts_only_the_models_that_it_is_told_to(
    database: Database, start_worker: StartWorker, model_folder: Path
) -> None:
    other = deploy(database, model_folder, name="other")
    start_worker(worker_models="other, third")
    assert hostings(database).keys() == {other.id}


def test_wrong_settings_end_the_worker_with_their_name(settings: Settings, tmp_path: Path) -> None:
    worker = WorkerProcess(settings, tmp_path / "log", worker_slots="many")
    assert worker.process.wait(30) == 1
    assert "PENSTOCK_WORKER_SLOTS" in worker.log.read_text()
