"""A real worker process on the test's services, with the model of `examples/invoices`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState
from penstock.registry.folder import describe
from penstock.registry.models import Deployment, Hosting, Worker
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import select

from tests.conftest import ROOT
from tests.factories import make_deployment, make_tenant, submit_job
from tests.patience import PATIENCE_SECONDS, eventually

START_SECONDS = 200.0  # the first worker on a machine compiles the kernels, perhaps beside another that does


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float32, where the order of a sum does not change which token is likeliest."""
    return copy_demo_model(tmp_path_factory.mktemp("model"))


def copy_demo_model(folder: Path) -> Path:
    """Copy it there, in float32."""
    for file in (ROOT / "examples/invoices/model").iterdir():
        shutil.copy(file, folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}))
    return folder


@pytest.fixture
def tenant(database: Database) -> Tenant:
    with database.transaction() as session:
        return make_tenant(session)


@pytest.fixture
def deployment(database: Database, model_folder: Path) -> Deployment:
    """The model as a champion that no worker hosts yet."""
    return deploy(database, model_folder)


def deploy(database: Database, folder: Path, *, name: str = "tiny", version: str = "1") -> Deployment:
    """Register a folder by its rows alone."""
    described = describe(folder)
    with database.transaction() as session:
        deployment = make_deployment(session, name, version, source=str(folder))
        deployment.manifest = described.manifest
        deployment.context_length = described.context_length
    return deployment


class WorkerProcess:
    """`python -m penstock_worker` and its engines."""

    def __init__(self, settings: Settings, log: Path, **overrides: Any) -> None:
        environment = {
            "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
            "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
            "PENSTOCK_LEASE_SECONDS": "3",
            "PENSTOCK_SWEEP_SECONDS": "0.2",
            "PENSTOCK_CHECKPOINT_SECONDS": "0.3",
            "PENSTOCK_ENGINE_THREADS": "1",
            "PENSTOCK_COMPRESSIONS": "0",
            "PENSTOCK_ENGINE_KV_BYTES": str(2**27),
            "PENSTOCK_LOG_LEVEL": "info",
            "PENSTOCK_LOG_FORMAT": "console",
        } | {f"PENSTOCK_{name.upper()}": str(value) for name, value in overrides.items()}
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock_worker"],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def children(self) -> list[int]:
        """The engine processes that live."""
        threads = Path(f"/proc/{self.pid}/task")
        try:
            found = [int(pid) for task in threads.iterdir() for pid in (task / "children").read_text().split()]
        except FileNotFoundError:
            return []
        return [pid for pid in found if is_alive(pid)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class StartWorker(Protocol):
    def __call__(self, *, wait: bool = True, **overrides: Any) -> WorkerProcess: ...


@contextmanager
def worker_starter(settings: Settings, database: Database, folder: Path) -> Iterator[StartWorker]:
    """Starts workers, by default waiting until they host a model; ends them all, and prints their logs."""
    workers: list[WorkerProcess] = []

    def start(*, wait: bool = True, **overrides: Any) -> WorkerProcess:
        worker = WorkerProcess(settings, folder / f"worker-{len(workers)}.log", **overrides)
        workers.append(worker)
        if wait:
            eventually(lambda: is_ready(database, worker), "a ready worker", START_SECONDS)
        return worker

    try:
        yield start
    finally:
        engines = [pid for worker in workers for pid in worker.children]
        for worker in workers:
            worker.kill()
            print(f"--- {worker.log.name}\n{worker.log.read_text()}")
        eventually(lambda: not any(map(is_alive, engines)), "the end of the engines")


@pytest.fixture
def start_worker(settings: Settings, database: Database, redis: Redis, tmp_path: Path) -> Iterator[StartWorker]:
    with worker_starter(settings, database, tmp_path) as start:
        yield start


def is_ready(database: Database, worker: WorkerProcess) -> bool:
    with database.transaction() as session:
        query = select(Hosting.state).join(Worker).where(Worker.pid == worker.pid, Hosting.state == "ready")
        return session.scalar(query) is not None


class Jobs:
    """Submits jobs and looks at them."""

    def __init__(self, database: Database, tenant: Tenant) -> None:
        self._database, self._tenant = database, tenant

    def submit(self, prompt: str = "Invoice", **body: Any) -> str:
        with self._database.transaction() as session:
            return submit_job(session, self._tenant, input={"prompt": prompt}, **body).id

    def submit_input(self, given: dict[str, Any], **body: Any) -> str:
        with self._database.transaction() as session:
            return submit_job(session, self._tenant, input=given, **body).id

    def submit_many(self, prompts: Sequence[str], **body: Any) -> list[str]:
        """All in one transaction, so that they begin to wait together."""
        with self._database.transaction() as session:
            return [submit_job(session, self._tenant, input={"prompt": prompt}, **body).id for prompt in prompts]

    def get(self, job_id: str) -> Job:
        with self._database.transaction() as session:
            return session.get_one(Job, job_id)

    def runs(self, job_id: str) -> list[JobRun]:
        with self._database.transaction() as session:
            return list(session.scalars(select(JobRun).where(JobRun.job_id == job_id).order_by(JobRun.fence)))

    def finished(self, job_id: str) -> Job:
        """The job, once its state is final."""

        def look() -> Job | None:
            job = self.get(job_id)
            return job if JobState(job.state).final else None

        return eventually(look, f"the end of {job_id}")


@pytest.fixture
def jobs(database: Database, tenant: Tenant) -> Jobs:
    return Jobs(database, tenant)
