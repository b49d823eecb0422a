"""The web application, a tender stepped by hand, and a worker that claims and finishes through the real lease."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from penstock.batches.models import Batch
from penstock.batches.tending import BatchTender
from penstock.batches.turns import Turn, give_back, take
from penstock.batches.workshop import Workshop
from penstock.db import Database
from penstock.events.services import place_committed
from penstock.jobs import lease
from penstock.jobs.lease import Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import func, select, update

from tests.factories import make_worker
from tests.platform.api.conftest import Caller
from tests.platform.api.conftest import app as app
from tests.platform.api.conftest import caller as caller
from tests.platform.api.conftest import deployment as deployment
from tests.platform.api.conftest import make_caller as make_caller
from tests.platform.api.conftest import plain_logs as plain_logs
from tests.platform.batches.serving import finish, workshop_of

WAITING = 6
"""Jobs that a batch of these tests has waiting at any time."""


def native(number: int, prompt: str = "hello there", **line: Any) -> dict[str, Any]:
    body = {"model": "tiny", "input": {"prompt": prompt}}
    return {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/jobs", "body": body} | line


def lines(count: int) -> list[dict[str, Any]]:
    return [native(number) for number in range(1, count + 1)]


def as_jsonl(documents: Sequence[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in documents)


def form(fields: Mapping[str, str], content: bytes, filename: str = "lines.jsonl") -> bytes:
    """The body of a form whose file comes last; `upload` knows its boundary."""
    head = b"--edge\r\nContent-Disposition: form-data; name="
    parts = [head + f'"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    file = head + f'"file"; filename="{filename}"\r\nContent-Type: application/jsonl\r\n\r\n'.encode()
    return b"".join([*parts, file, content, b"\r\n--edge--\r\n"])


def upload(caller: Caller, body: bytes) -> Any:
    kind = "multipart/form-data; boundary=edge"
    headers = {"Authorization": f"Bearer {caller.key}", "Content-Type": kind}
    return caller.client.post("/v1/files", data=body, headers=headers)


@dataclass(frozen=True)
class Bench:
    """Where batches are made, brought forward and served, each by hand."""

    caller: Caller
    tender: BatchTender
    workshop: Workshop
    worker_id: str
    deployment_id: str

    def upload(self, content: bytes) -> Any:
        return upload(self.caller, form({"purpose": "batch"}, content))

    def make(self, documents: Sequence[Any], **body: Any) -> str:
        """A batch of these lines; its id."""
        uploaded = self.upload(as_jsonl(documents))
        assert uploaded.status_code == 200, uploaded.text
        asked = {"input_file_id": uploaded.json["id"], "endpoint": "/v1/jobs", "completion_window": "24h"}
        answer = self.caller.post("/v1/batches", asked | body)
        assert answer.status_code == 200, answer.text
        batch_id: str = answer.json["id"]
        return batch_id

    def tend(self) -> None:
        """Work until no batch can be brought further for now."""
        while (turn := self.take()) is not None:
            more = self.tender.step(turn)
            with self.workshop.database.transaction() as session:
                give_back(session, turn, again_in=0.0 if more else 3600.0)
        self.wake()

    def take(self) -> Turn | None:
        with self.workshop.database.transaction() as session:
            return take(session)

    def wake(self) -> None:
        """Have every batch due again at once."""
        with self.workshop.database.transaction() as session:
            session.execute(update(Batch).values(due_at=func.now()))

    def get(self, batch_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.caller.get(f"/v1/batches/{batch_id}").json
        return document

    def jobs(self, batch_id: str) -> list[Job]:
        """Those that serve its lines, in their order."""
        with self.workshop.database.transaction() as session:
            return list(session.scalars(select(Job).where(Job.batch_id == batch_id).order_by(Job.batch_line)))

    def ask(self, batch_id: str, action: str, body: Any = None) -> dict[str, Any]:
        """Cancel, pause, resume or retry it; what the answer says of it."""
        answer = self.caller.post(f"/v1/batches/{batch_id}/{action}", body)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json
        return document

    def claim(self) -> Held | None:
        with self.workshop.database.transaction() as session:
            claim = lease.claim(session, worker_id=self.worker_id, deployment_id=self.deployment_id, lease_seconds=30)
        return Held(claim.job.id, claim.fence) if claim is not None else None

    def finish(self, held: Held, state: JobState = JobState.SUCCEEDED, text: str = "done") -> None:
        finish(self.workshop.database, held, state, text)

    def serve(self, most: int = 1000, ends: Mapping[int, JobState] | None = None) -> int:
        """Claim and finish up to so many jobs; how many it were. `ends` says how those of some lines end."""
        for count in range(most):
            held = self.claim()
            if held is None:
                return count
            with self.workshop.database.transaction() as session:
                line = session.get_one(Job, held.job_id).batch_line
            self.finish(held, (ends or {}).get(line or 0, JobState.SUCCEEDED))
        return most

    def run_to_end(self, batch_id: str, ends: Mapping[int, JobState] | None = None) -> dict[str, Any]:
        for _ in range(100):
            self.tend()
            if self.get(batch_id)["status"] in ("completed", "failed", "expired", "cancelled"):
                return self.get(batch_id)
            self.serve(ends=ends)
        raise AssertionError(f"it does not end: {self.get(batch_id)}")

    def content(self, file_id: str) -> list[dict[str, Any]]:
        with self.caller.get(f"/v1/files/{file_id}/content") as answer:
            assert answer.status_code == 200, answer.text
            return [json.loads(line) for line in answer.data.splitlines()]

    def events(self) -> list[str]:
        """The batch's events in the feed, in their order."""
        with self.workshop.database.transaction() as session:
            place_committed(session)
        found = self.caller.get("/v1/events?limit=1000").json["data"]
        return [event["type"] for event in found if event["type"].startswith("batch.")]


@pytest.fixture
def workshop(settings: Settings, database: Database, redis: Redis) -> Workshop:
    return workshop_of(settings, database, redis, batch_waiting_jobs=WAITING)


@pytest.fixture
def bench(workshop: Workshop, caller: Caller, deployment: Deployment) -> Bench:
    with workshop.database.transaction() as session:
        worker = make_worker(session, session.merge(deployment, load=False))
    return Bench(caller, BatchTender(workshop), workshop, worker.id, deployment.id)
