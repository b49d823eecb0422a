"""A worker process that serves the demo model, and what looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.broker import make_redis
from penstock.db import Database
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import Event, Job
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock.tables import Base
from redis import Redis
from sqlalchemy import select, text

from tests.factories import make_tenant
from tests.worker.conftest import Jobs, WorkerProcess, deploy, eventually, worker_starter


@dataclass(frozen=True)
class World:
    """A worker that serves `deployment`, and what looks at it."""

    settings: Settings
    database: Database
    redis: Redis
    deployment: Deployment
    jobs: Jobs
    worker: WorkerProcess

    def run(self, prompt: str = "Invoice", **body: Any) -> Job:
        return self.jobs.finished(self.jobs.submit(prompt, **body))

    def journal(self, job_id: str) -> list[JournalEntry]:
        return Journal(self.redis, "test").read(job_id)

    def tokens_in_flight(self, job_id: str, count: int) -> None:
        """Wait until the running job has so many tokens in its journal."""
        eventually(lambda: len(self.journal(job_id)) >= count, f"{count} tokens of {job_id}")
        assert self.jobs.get(job_id).state == "running", "too fast to be disturbed"

    def events(self, job_id: str) -> list[str]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Event.type).where(Event.job_id == job_id).order_by(Event.number)))


@contextmanager
def open_world(settings: Settings, migrated: Database, model_folder: Path, folder: Path) -> Iterator[World]:
    """Empty services, a tenant, and a worker with 320 slots whose log lies in `folder`."""
    redis = make_redis(settings)
    redis.flushall()
    with migrated.transaction() as session:
        names = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        tenant = make_tenant(session)
    deployment = deploy(migrated, model_folder)
    with worker_starter(settings, migrated, folder) as start:
        yield World(settings, migrated, redis, deployment, Jobs(migrated, tenant), start(worker_slots=320))
    redis.close()
