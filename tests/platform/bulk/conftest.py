"""The web application, a tender stepped by hand, and a worker that claims and finishes through the real lease."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from penstock.batches.workshop import Workshop
from penstock.bulk.models import BulkOperation
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.db import Database
from penstock.dead_letters.work import LETTER_WORKS
from penstock.events.services import place_committed
from penstock.jobs.states import JobState
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import event, func, update

from tests.platform.api.conftest import Caller, Worker
from tests.platform.api.conftest import app as app
from tests.platform.api.conftest import caller as caller
from tests.platform.api.conftest import deployment as deployment
from tests.platform.api.conftest import make_caller as make_caller
from tests.platform.api.conftest import plain_logs as plain_logs
from tests.platform.api.conftest import worker as worker
from tests.platform.batches.serving import workshop_of


@dataclass(frozen=True)
class Bench:
    """Where operations are begun and worked off, each step by hand."""

    caller: Caller
    worker: Worker
    workshop: Workshop
    tender: BulkTender

    def as_(self, caller: Caller) -> "Bench":
        return replace(self, caller=caller)

    def begin(self, action: str, **wanted: Any) -> str:
        answer = self.caller.post("/v1/bulk", {"action": action, "filter": wanted})
        assert answer.status_code == 202, answer.text
        bulk_id: str = answer.json["id"]
        return bulk_id

    def get(self, bulk_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.caller.get(f"/v1/bulk/{bulk_id}").json
        return document

    def counts(self, bulk_id: str) -> tuple[int, int, int, int]:
        now = self.get(bulk_id)
        return now["total"], now["done"], now["skipped"], now["failed"]

    def work(self, most: int = 1000) -> int:
        """Take up to so many steps, all that are due now; how many they were."""
        return next((step for step in range(most) if not self.tender.work_once()), most)

    def wake(self) -> None:
        """Have every operation due at once."""
        with self.workshop.database.transaction() as session:
            session.execute(update(BulkOperation).values(due_at=func.now()))

    def run(self, action: str, **wanted: Any) -> dict[str, Any]:
        bulk_id = self.begin(action, **wanted)
        self.work()
        return self.get(bulk_id)

    def finished(self, state: JobState = JobState.FAILED, **body: Any) -> str:
        """A job that has ended so."""
        job_id = self.caller.submit(**body)
        self.worker.claim()
        self.worker.finish(state)
        return job_id

    def status(self, job_id: str) -> str:
        state: str = self.caller.get(f"/v1/jobs/{job_id}").json["status"]
        return state

    def listed(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.caller.get(f"/v1/jobs?limit=100{query}").json["data"]
        return found

    def events(self) -> list[str]:
        with self.workshop.database.transaction() as session:
            place_committed(session)
        found = self.caller.get("/v1/events?limit=1000").json["data"]
        return [one["type"] for one in found if one["type"].startswith("bulk.")]


@pytest.fixture
def bench(settings: Settings, database: Database, redis: Redis, caller: Caller, worker: Worker) -> Bench:
    workshop = workshop_of(settings, database, redis)
    return Bench(caller, worker, workshop, BulkTender(workshop, {**JOB_WORKS, **LETTER_WORKS}))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What was asked of the database in the block."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
