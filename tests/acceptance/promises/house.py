"""The whole platform as processes, reached over HTTP, with its ways to PostgreSQL and Redis in the tests' hands."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from penstock.auth.services import Scope, create_api_key
from penstock.broker import make_redis
from penstock.db import Database
from penstock.embedded.ports import choose
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import Job
from penstock.registry.models import Deployment
from penstock.settings import Settings
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import text

from tests.conftest import ROOT, empty
from tests.factories import make_tenant
from tests.patience import eventually
from tests.platform.api.conftest import Received, read_events
from tests.worker.conftest import Jobs, StartWorker, WorkerProcess, deploy, is_alive, worker_starter
from tests.worker.proxy import Proxy

LEASE_SECONDS: Final = 3.0
WAIT_SECONDS: Final = 3.0
SLOTS: Final = 8
SHORT: Final = {"temperature": 0, "ignore_eos": True, "max_tokens": 4}
ENDLESS: Final = {"temperature": 0, "ignore_eos": True, "max_tokens": 900}
"""Long enough to be disturbed."""
SQL_RECORDER: Final = ROOT / "tests/acceptance/promises/recorder"


@dataclass(frozen=True)
class House:
    """A web process, a control process, and workers, which serve the demo model as `tiny`.

    `database` and `redis` are the tests' own ways; the processes go through the proxies. Workers run in the engine's
    determinism lane unless they are told otherwise, have 8 slots, and leases of three seconds.
    """

    settings: Settings
    database: Database
    redis: Redis
    postgresql_proxy: Proxy
    redis_proxy: Proxy
    deployment: Deployment
    jobs: Jobs
    tenant_id: str
    web: httpx.Client
    key: str
    statements: Path
    _start: StartWorker
    _staff: list[tuple[WorkerProcess, dict[str, Any]]]

    # Workers

    @property
    def workers(self) -> list[WorkerProcess]:
        """Those that live."""
        return [worker for worker, _ in self._staff if is_alive(worker.pid)]

    def staff(self, count: int, **wanted: Any) -> list[WorkerProcess]:
        """So many workers with the settings that are wanted, all ready, and no other."""
        alive = [(worker, its) for worker, its in self._staff if is_alive(worker.pid)]
        fit = [(worker, its) for worker, its in alive if wanted.items() <= its.items()][:count]
        for worker, its in alive:
            os.kill(worker.pid, signal.SIGCONT)  # a test that failed may have left it frozen
            if (worker, its) not in fit:
                worker.stop()
        while len(fit) < count:
            fit.append(self._hire({"worker_slots": SLOTS, "engine_deterministic": True} | wanted))
        self._staff[:] = fit
        return self.workers

    def _hire(self, its: dict[str, Any]) -> tuple[WorkerProcess, dict[str, Any]]:
        with environment(PYTHONPATH=str(SQL_RECORDER), SQL_FILE=str(self.statements)):
            return self._start(**its), its

    @contextmanager
    def engines_stopped(self) -> Iterator[None]:
        """No token is generated meanwhile."""
        engines = [engine for worker in self.workers for engine in worker.children]
        for engine in engines:
            os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            for engine in engines:
                os.kill(engine, signal.SIGCONT)

    def holder(self, job_id: str) -> WorkerProcess:
        """The worker that runs the job."""
        pid = eventually(lambda: self._pid_of_holder(job_id), f"a holder of {job_id}")
        return next(worker for worker in self.workers if worker.pid == pid)

    def _pid_of_holder(self, job_id: str) -> int | None:
        with self.database.transaction() as session:
            query = text("SELECT worker.pid FROM worker JOIN job ON job.lease_holder = worker.id WHERE job.id = :id")
            pid: int | None = session.scalar(query, {"id": job_id})
            return pid

    # Jobs

    def submit(self, prompt: str = "Invoice", params: dict[str, Any] | None = None, **body: Any) -> str:
        """A job that was accepted."""
        answer = self.web.post("/v1/jobs", json=body_of(prompt, params, **body))
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def finished(self, job_id: str) -> Job:
        job = self.jobs.finished(job_id)
        assert job.state == "succeeded", job.error
        return job

    def journal(self, job_id: str) -> list[JournalEntry]:
        return Journal(self.redis, "test").read(job_id)

    def in_flight(self, job_id: str, tokens: int = 30) -> None:
        """Wait until the running job has so many tokens in its journal."""
        eventually(lambda: len(self.journal(job_id)) >= tokens, f"{tokens} tokens of {job_id}")
        assert self.jobs.get(job_id).state == "running", "too fast to be disturbed"

    # Readers

    def connection(self) -> socket.socket:
        """A connection to the web process, with 30 seconds of patience."""
        return socket.create_connection(("127.0.0.1", self.web.base_url.port or 80), timeout=30)

    def request(self, method: str, path: str, **headers: str) -> bytes:
        """The bytes of a request with the key; a POST submits a job."""
        body = json.dumps(body_of(params={"max_tokens": 2})).encode() if method == "POST" else b""
        told = {"Host": "x", "Authorization": f"Bearer {self.key}", "Content-Length": str(len(body))} | headers
        told |= {"Content-Type": "application/json"} if body else {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    @contextmanager
    def reader(self, job_id: str) -> Iterator["Reader"]:
        """`curl -N` at the job's stream."""
        url, header = f"{self.web.base_url}/v1/jobs/{job_id}/events", f"Authorization: Bearer {self.key}"
        command = ["curl", "--no-buffer", "--silent", "--show-error", "--fail", "--header", header, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                yield Reader(process)
            finally:
                process.kill()

    def threads_held(self) -> int:
        """Streams and waits that are open in the web process, by its own metrics."""
        text = self.web.get("/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("penstock_waiting_requests ")]
        return int(float(line.split()[1]))


class Reader:
    """A `curl` that reads one stream over one connection."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.had: list[Received] = []
        assert process.stdout is not None
        self._events = read_events(iter(lambda: os.read(process.stdout.fileno(), 65536).decode(), ""))  # type: ignore[union-attr]  # it was asked for

    def read(self, until: Callable[[Received], bool]) -> Received:
        """Read on to the first event of which `until` is true."""
        for event in self._events:
            self.had.append(event)
            if until(event):
                return event
        raise AssertionError(f"the stream ended: {self.rest_of_curl()}")

    def read_tokens(self, count: int) -> None:
        """Read on until so many tokens have come."""
        self.read(lambda event: event.type == "output.delta" and event.data["position"] + 1 >= count)

    def read_to_end(self) -> list[Received]:
        """All events, once the server has ended the stream in good order."""
        self.had += self._events
        assert self._process.wait(30) == 0, self.rest_of_curl()
        return self.had

    def rest_of_curl(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()


def assert_whole(had: list[Received], job: Job) -> None:
    """Every event once, in order, and the tokens are those of the job's output."""
    deltas = [event for event in had if event.type == "output.delta"]
    assert [event.data["position"] for event in deltas] == list(range(len(deltas)))
    cursors = [tuple(map(int, event.id.split("."))) for event in had]
    assert cursors == sorted(set(cursors)), "an id came twice or out of order"
    states = [event for event in had if event.type != "output.delta"]
    assert [int(event.id.split(".")[0]) for event in states] == list(range(1, len(states) + 1))
    assert job.output is not None
    for choice in job.output["choices"]:
        own = [event.data for event in deltas if event.data["choice"] == choice["index"]]
        assert [delta["index"] for delta in own] == list(range(len(own)))
        assert "".join(delta["text"] for delta in own) == choice["text"]
        assert [delta["token_id"] for delta in own] == [*choice["token_ids"], None]


def body_of(prompt: str = "Invoice", params: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """What is posted to submit a job."""
    return {"model": "tiny", "input": {"prompt": prompt}, "params": ENDLESS if params is None else params} | body


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """The variables set, for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def open_house(settings: Settings, migrated: Database, model_folder: Path, folder: Path) -> Iterator[House]:
    """Empty services and the processes on them, without a worker yet; their logs lie in `folder`."""
    redis = make_redis(settings)
    redis.flushall()
    empty(migrated)
    with migrated.transaction() as session:
        tenant = make_tenant(session)
        scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
        key = create_api_key(session, tenant_id=tenant.id, name="promises", scopes=scopes, environment="test")[1]
    deployment = deploy(migrated, model_folder)
    with ExitStack() as stack:
        stack.callback(redis.close)
        database_port = int(settings.database_url.get_secret_value().rpartition(":")[2].partition("/")[0])
        proxies = Proxy(database_port), Proxy(redis.connection_pool.connection_kwargs["port"])
        for proxy in proxies:
            stack.callback(proxy.close)
        inside = settings.model_copy(
            update={
                "database_url": SecretStr(_through(proxies[0], settings.database_url)),
                "redis_url": SecretStr(_through(proxies[1], settings.redis_url)),
            }
        )
        start = stack.enter_context(worker_starter(inside, migrated, folder))
        control = stack.enter_context(_process("control", inside, folder))
        port = choose(None, None, "")
        web = stack.enter_context(_process("web", inside, folder, PENSTOCK_WEB_PORT=str(port)))
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )
        stack.enter_context(client)
        eventually(lambda: web.poll() is not None or _answers(client), "the web process")
        eventually(lambda: "control.started" in (folder / "control.log").read_text(), "the control process")
        assert [web.poll(), control.poll()] == [None, None]
        yield House(
            settings, migrated, redis, *proxies, deployment, Jobs(migrated, tenant), tenant.id, client, key,
            folder / "statements", start, [],
        )  # fmt: skip


@contextmanager
def _process(name: str, settings: Settings, folder: Path, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
    variables = {
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_DATABASE_WAIT_SECONDS": str(WAIT_SECONDS),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_SECRET_KEY": settings.secret_key.get_secret_value(),
        "PENSTOCK_ENVIRONMENT": settings.environment,
        "PENSTOCK_LEASE_SECONDS": str(LEASE_SECONDS),
        "PENSTOCK_SWEEP_SECONDS": "0.4",
        "PENSTOCK_FILES_URL": str(folder / "files"),
        "PENSTOCK_LOG_FORMAT": "console",
    } | more
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", name], env=os.environ | variables, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        print(f"--- {name}\n{(folder / f'{name}.log').read_text()}")


def _through(proxy: Proxy, address: SecretStr) -> str:
    head, _, tail = address.get_secret_value().rpartition(":")
    return f"{head}:{proxy.port}/{tail.partition('/')[2]}"


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False
