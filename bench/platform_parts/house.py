"""The platform's real processes over real services, started for one part of the bench, and what they take."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
from penstock.auth.services import bootstrap
from penstock.clock import utc_now
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.embedded.ports import choose
from penstock.ids import new_id
from penstock.jobs.models import Job
from penstock.migrate import upgrade
from penstock.registry.folder import describe
from penstock.registry.models import LANE_ID, Deployment, Hosting, RoutingPolicy
from penstock.settings import Settings, variable_name
from pydantic import SecretStr
from sqlalchemy import func, select, text

ROOT: Final = Path(__file__).parent.parent.parent
DEMO_MODEL: Final = ROOT / "examples" / "invoices" / "model"
MODEL_NAME: Final = "invoice-extractor"
START_SECONDS: Final = 120.0
REAL_WORKER: Final = ("-m", "penstock_worker")
T = TypeVar("T")


def null_worker(step_seconds: float, fails: Path | None = None) -> tuple[str, ...]:
    """What Python runs as a worker whose engine takes so long for a step, and computes nothing.

    The version in the folder `fails` gives up every request.
    """
    failing = ("--fails", str(fails)) if fails is not None else ()
    return ("-m", "bench.platform_parts.null_worker", "--step-seconds", str(step_seconds), *failing)


def until(look: Callable[[], T | None], what: str, seconds: float = START_SECONDS, *, pause: float = 0.02) -> T:
    """What `look` finds as soon as it finds anything. Raises SystemExit when that takes too long.

    Between looks it pauses so many seconds: a look at the database is work that what is measured has to wait for.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(pause)
    raise SystemExit(f"waited {seconds:.0f} s in vain for {what}")


@dataclass
class House:
    """One database with a key and a model, and the processes that were started over it."""

    settings: Settings
    database: Database
    key: str
    services: dict[str, int]  # processes of PostgreSQL and Redis, where they are ours
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """The web process's, on the loopback address."""
        return self.settings.web_port

    @contextmanager
    def running(self, kind: str, *program: str, **overrides: object) -> Iterator[None]:
        """A process of that kind while the block runs; `overrides` are of settings."""
        process = subprocess.Popen(
            [sys.executable, *(program or ("-m", "penstock", kind))],
            cwd=ROOT,
            env=os.environ | environment(self.settings) | environment(self.settings, **overrides),
            stdin=subprocess.DEVNULL,
        )
        self.processes[kind] = process
        try:
            yield
        finally:
            process.terminate()
            process.wait()
            del self.processes[kind]

    @contextmanager
    def front(self, **overrides: object) -> Iterator[None]:
        """A web and a control process, ready."""
        with self.running("control"), self.running("web", **overrides):
            until(self._web_listens, "the web process")
            yield

    @contextmanager
    def worker(self, *program: str, **overrides: object) -> Iterator[None]:
        """A worker that hosts the model, ready."""
        with self.running("worker", *program, **overrides):
            until(self._worker_ready, "a worker that hosts the model")
            yield

    def _web_listens(self) -> bool:
        assert self.processes["web"].poll() is None, "the web process ended"
        pids = [self.processes["web"].pid, *(one.pid for one in psutil.Process(self.processes["web"].pid).children())]
        return len(pids) > 1 and answers(self.port)

    def _worker_ready(self) -> bool:
        assert self.processes["worker"].poll() is None, "the worker ended"
        with self.database.transaction() as session:
            ready = select(func.count()).select_from(Hosting).where(Hosting.state == "ready")
            wanted = select(func.count()).select_from(Deployment).where(Deployment.id != LANE_ID)
            return (session.scalar(ready) or 0) >= (session.scalar(wanted) or 0)

    def count(self, *states: str) -> int:
        """Jobs in these states."""
        with self.database.transaction() as session:
            return session.scalar(select(func.count()).where(Job.state.in_(states))) or 0

    def seconds_of_jobs(self) -> tuple[float, float]:
        """By the database's clock: from the first job's creation to the last's end, and from the first's end to it."""
        with self.database.transaction() as session:
            created, first, last = session.execute(
                select(func.min(Job.created_at), func.min(Job.finished_at), func.max(Job.finished_at))
            ).one()
        assert last is not None, "no job has ended"
        assert first is not None
        return (last - created).total_seconds(), (last - first).total_seconds()

    def forget_jobs(self) -> None:
        """Begin again with no job."""
        with self.database.transaction() as session:
            session.execute(text("TRUNCATE job, outbox_message CASCADE"))

    def usage(self) -> "Usage":
        """What every process has taken by now."""
        pids = {kind: process.pid for kind, process in self.processes.items()} | self.services
        return Usage.now(pids)


@dataclass(frozen=True)
class Usage:
    """Seconds of processors by kind of process, and MiB of memory that is in use."""

    at: float
    cpu: dict[str, float]
    mebibytes: dict[str, float]

    @classmethod
    def now(cls, pids: dict[str, int]) -> "Usage":
        trees = {kind: _tree(psutil.Process(pid)) for kind, pid in pids.items()}
        if len(trees.get("worker", [])) > 1:
            trees["worker"], trees["engine"] = trees["worker"][:1], trees["worker"][1:]
        cpu = {kind: sum(map(_cpu_seconds, tree)) for kind, tree in trees.items()}
        rss = {kind: max(one.memory_info().rss for one in tree) / 2**20 for kind, tree in trees.items()}
        return cls(time.perf_counter(), cpu, {kind: round(most, 1) for kind, most in rss.items()})

    def shares_since(self, before: "Usage") -> dict[str, float]:
        """Of one core, by kind of process."""
        seconds = self.at - before.at
        return {kind: round((spent - before.cpu.get(kind, 0.0)) / seconds, 3) for kind, spent in self.cpu.items()}


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))  # its own and those of children that have ended
    except psutil.NoSuchProcess:
        return 0.0


def answers(port: int) -> bool:
    """Whether a web server listens there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def environment(settings: Settings, **overrides: object) -> dict[str, str]:
    """The variables that give a process these settings, and what is to differ."""
    told = {name: getattr(settings, name) for name in settings.model_fields_set} | overrides
    return {variable_name(name): _as_text(value) for name, value in told.items() if value is not None}


def _as_text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


@contextmanager
def own_services(durable: bool = True) -> Iterator[EmbeddedServices]:
    """PostgreSQL and Redis in a folder of their own; what they write is forced to the disk, as in production."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        with EmbeddedServices(Path(folder) / "state", mlflow=False, durable=durable) as services:
            yield services


@contextmanager
def open_house(services: EmbeddedServices, model: Path = DEMO_MODEL, **overrides: Any) -> Iterator[House]:
    """A migrated database with the model as champion, and a key; nothing runs over it yet."""
    settings = Settings(
        database_url=SecretStr(services.database_url),
        redis_url=SecretStr(services.redis_url),
        secret_key=SecretStr(os.urandom(32).hex()),
        web_port=choose(None, None, ""),
        log_level="warning",
        files_url=str(services.folder.root / "files"),
        **overrides,
    )
    upgrade(settings)
    database = Database(settings)
    try:
        crown(database, add_version(database, model, "1"))
        with database.transaction() as session:
            made = bootstrap(session, environment=settings.environment)
        assert made is not None, "the database is not new"
        yield House(settings, database, made.api_key, services.supervisor.processes)
    finally:
        database.close()


def add_version(database: Database, model: Path, version: str, name: str = MODEL_NAME) -> str:
    """The rows of one version, as the registry would have them; its deployment's id."""
    folder = describe(model)
    with database.transaction() as session:
        deployment = Deployment(
            id=new_id("dep"),
            model_name=name,
            model_version=version,
            source=str(folder.path),
            manifest=folder.manifest,
            digest=folder.digest,
            recipe=folder.recipe,
            context_length=folder.context_length,
        )
        session.add(deployment)
        return deployment.id


def crown(database: Database, deployment_id: str, name: str = MODEL_NAME) -> None:
    """Have it serve the model's jobs."""
    with database.transaction() as session:
        policy = RoutingPolicy(
            model_name=name, champion_id=deployment_id, champion_since=utc_now(), reason="made by a benchmark"
        )
        session.add(policy)


def job_body(prompt: str, max_tokens: int, **params: object) -> bytes:
    """A job of the bench's model, of exactly so many tokens."""
    wanted = {"max_tokens": max_tokens, "temperature": 0.0, **params}
    return json.dumps({"model": MODEL_NAME, "input": {"prompt": prompt}, "params": wanted}).encode()
