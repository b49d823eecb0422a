"""The web application on real services, tenants with keys, and a worker by hand that uses the real lease."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from penstock.auth.services import Scope, create_api_key
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import Append, Journal, JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis

from tests.factories import make_deployment, make_tenant, make_worker
from tests.serving import renewed

ALL_SCOPES = tuple(Scope)
BODY = {"model": "tiny", "input": {"prompt": "hello there"}}


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Log lines without the coloured tracebacks of structlog's first configuration, which take seconds each."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@pytest.fixture
def app(routed: Flask, settings: Settings, database: Database, redis: Redis) -> Iterator[Flask]:
    with renewed(routed, settings, database, redis) as app:
        yield app


@dataclass(frozen=True)
class Caller:
    """A tenant's program with its key."""

    client: FlaskClient
    tenant_id: str
    key: str

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.open(path, method=method, json=body, headers={"Authorization": f"Bearer {self.key}"} | named)

    def get(self, path: str, **headers: str) -> Any:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("POST", path, body, **headers)

    def submit(self, **body: Any) -> str:
        answer = self.post("/v1/jobs", BODY | body)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json["id"]
        return job_id


@pytest.fixture
def make_caller(app: Flask, database: Database) -> Callable[..., Caller]:
    """Makes a caller of a new tenant, with a key of the given scopes."""

    def make(scopes: tuple[Scope, ...] = ALL_SCOPES) -> Caller:
        with database.transaction() as session:
            tenant = make_tenant(session)
            _, key = create_api_key(session, tenant_id=tenant.id, name="test", scopes=scopes, environment="test")
        return Caller(app.test_client(), tenant.id, key)

    return make


@pytest.fixture
def caller(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller()


@pytest.fixture
def deployment(database: Database) -> Deployment:
    """The champion of the model `tiny`, with a context of 256 tokens."""
    with database.transaction() as session:
        return make_deployment(session)


@dataclass
class Worker:
    """Does by hand what a worker does, through the real claim, journal and finish."""

    database: Database
    journal: Journal
    id: str
    deployment_id: str
    held: Held | None = None
    entries: list[JournalEntry] = field(default_factory=list)

    def claim(self) -> Held:
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id=self.id, deployment_id=self.deployment_id, lease_seconds=30)
        assert claim is not None
        self.held = Held(claim.job.id, claim.fence)
        opened = self.journal.open(claim.job.id, claim.fence)
        self.entries = max(opened.entries, claim.checkpoint, key=len)
        self.journal.announce([claim.job.id])
        return self.held

    def write(self, *texts: str) -> None:
        """Journal one token a text."""
        assert self.held is not None
        first = len(self.entries)
        new = [
            JournalEntry(0, first + offset, 100 + first + offset, text, None, self.held.fence)
            for offset, text in enumerate(texts)
        ]
        self.entries += new
        self.journal.append([Append(self.held.job_id, self.held.fence, first, new)])

    def checkpoint(self) -> None:
        assert self.held is not None
        with self.database.transaction() as session:
            lease.checkpoint(session, [lease.Progress(self.held, self.entries, 0.1)])

    def finish(self, state: JobState = JobState.SUCCEEDED, *, announce: bool = True) -> None:
        assert self.held is not None
        first = len(self.entries)
        last = JournalEntry(0, first, None, "", None, self.held.fence, "stop")
        self.entries.append(last)
        self.journal.append([Append(self.held.job_id, self.held.fence, first, [last])])
        with self.database.transaction() as session:
            lease.finish(session, self.held, Finish(state, self.entries, prompt_tokens=2))
        if announce:
            self.journal.announce([self.held.job_id])

    def lose(self) -> None:
        """Have the job taken away, as the reaper does."""
        assert self.held is not None
        with self.database.transaction() as session:
            lease.hand_back(session, self.held, RunOutcome.LEASE_LOST, "fell silent", max_own_crashes=3)
        self.journal.announce([self.held.job_id])


@pytest.fixture
def worker(database: Database, redis: Redis, deployment: Deployment) -> Worker:
    with database.transaction() as session:
        row = make_worker(session, session.merge(deployment, load=False))
    return Worker(database, Journal(redis, publisher=row.id), row.id, deployment.id)


@dataclass(frozen=True)
class Received:
    """One event as a stream's reader gets it."""

    id: str
    type: str
    data: dict[str, Any]


def read_events(chunks: Iterator[str] | Any) -> Iterator[Received]:
    """Parse a stream's text as it comes."""
    buffer = ""
    for chunk in chunks:
        buffer += chunk if isinstance(chunk, str) else chunk.decode()
        *blocks, buffer = buffer.split("\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                yield Received(fields["id"], fields["event"], json.loads(fields["data"]))


def stream(caller: Caller, job_id: str, last_event_id: str | None = None) -> Generator[Received, None, None]:
    """The events of a job's stream, one by one as the application produces them; closed with the generator."""
    headers = {"Last_Event_ID": last_event_id} if last_event_id else {}
    response = caller.get(f"/v1/jobs/{job_id}/events", **headers)
    assert response.status_code == 200, response.text
    assert response.mimetype == "text/event-stream"
    with closing(response):
        yield from read_events(response.response)
