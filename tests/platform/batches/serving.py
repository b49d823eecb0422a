"""A tender and a worker in a thread, for tests that look at batches from outside."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.batches.models import Batch
from penstock.batches.tending import BatchTender
from penstock.batches.workshop import Workshop
from penstock.db import Database
from penstock.files.storage import FileStorage
from penstock.jobs import lease
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.quotas.counters import Counters
from penstock.quotas.gate import QuotaGate
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import func, update

from tests.factories import WordCounter
from tests.platform.api.conftest import Worker


def workshop_of(settings: Settings, database: Database, redis: Redis, **changes: int) -> Workshop:
    """A workshop that counts words and has few jobs waiting."""
    return Workshop(
        settings.model_copy(update={"batch_waiting_jobs": 6, "batch_max_lines": 2000} | changes),
        database,
        FileStorage.of(settings),
        WordCounter(),
        QuotaGate(Counters(redis), settings),
        Journal(redis, publisher="test"),
    )


@contextmanager
def served(workshop: Workshop, worker: Worker, failing: str = "fail") -> Iterator[None]:
    """Batches go on and their jobs are served while the block runs; those whose prompt is `failing` fail."""
    stop, tender = threading.Event(), BatchTender(workshop)

    def run() -> None:
        while not stop.wait(0.01):
            with workshop.database.transaction() as session:
                session.execute(update(Batch).values(due_at=func.now()))
            while tender.work_once() and not stop.is_set():
                serve_one(workshop.database, worker, failing)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def serve_one(database: Database, worker: Worker, failing: str) -> None:
    """Claim and finish the next job, if there is one."""
    with database.transaction() as session:
        claim = lease.claim(session, worker_id=worker.id, deployment_id=worker.deployment_id, lease_seconds=30)
    if claim is not None:
        finish(database, Held(claim.job.id, claim.fence), _end_of(claim.job, failing))


def finish(database: Database, held: Held, state: JobState, text: str = "done") -> None:
    """End the job with one token."""
    entries = [JournalEntry(0, 0, 5, text, None, held.fence), JournalEntry(0, 1, None, "", None, held.fence, "stop")]
    error = {"code": "broken", "message": "it broke"} if state is JobState.FAILED else None
    with database.transaction() as session:
        lease.finish(session, held, Finish(state, entries, prompt_tokens=2, error=error))


def _end_of(job: Job, failing: str) -> JobState:
    return JobState.FAILED if job.input.get("prompt") == failing else JobState.SUCCEEDED
