"""A worker process that serves the demo model, and what looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from penstock.broker import make_redis
from penstock.db import Database
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.models import Event, Job
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import select

from tests.conftest import empty
from tests.factories import make_tenant
from tests.patience import eventually
from tests.worker.conftest import Jobs, WorkerProcess, deploy, worker_starter

# Among few candidates: a resumed run prefills what it decoded before, and the last bits of its sums may differ.
SAMPLED = {"temperature": 4.0, "top_k": 3, "seed": 11, "ignore_eos": True}
DEMANDING: dict[str, dict[str, Any]] = {
    "choices": SAMPLED | {"n": 3, "max_tokens": 400, "logprobs": True, "prompt_logprobs": 0},
    "penalties": {
        "temperature": 0.0, "ignore_eos": True, "max_tokens": 700, "repetition_penalty": 1.05,
        "presence_penalty": 0.3, "frequency_penalty": 0.02, "logit_bias": {"40": -2.5},
    },
    "structure": {
        "temperature": 1.0, "top_k": 3, "seed": 4, "max_tokens": 990,
        "response_format": {"type": "regex", "regex": "([a-z]{2}[0-9]{3}, ){150}"},
    },
    "candidates": SAMPLED | {"n": 1, "best_of": 3, "max_tokens": 200, "prompt_logprobs": 1},
}  # fmt: skip
"""Parameters whose state a successor must rebuild, each long enough to be disturbed."""


def assert_same_output(job: Job, other: Job) -> None:
    """The same to the letter; log probabilities but for the last bits of sums in another order."""
    assert job.output_tokens == other.output_tokens
    mine, theirs = job.output or {}, other.output or {}
    assert [_unscored(choice) for choice in mine["choices"]] == [_unscored(choice) for choice in theirs["choices"]]
    for one, two in zip(_scores(mine), _scores(theirs), strict=True):
        assert one == pytest.approx(two, abs=1e-3)


def _unscored(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if name != "logprobs"}


def _scores(output: dict[str, Any]) -> list[list[float | None]]:
    tokens = [output.get("prompt_logprobs", []), *(choice.get("logprobs", []) for choice in output["choices"])]
    return [[token["logprob"] for token in each[1:]] for each in tokens]


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
    """Empty services, a tenant, and a worker with 320 slots whose log lies in `folder`.

    Nobody ends that worker, so its leases are long: a slow machine loses none.
    """
    redis = make_redis(settings)
    redis.flushall()
    empty(migrated)
    with migrated.transaction() as session:
        tenant = make_tenant(session)
    deployment = deploy(migrated, model_folder)
    with worker_starter(settings, migrated, folder) as start:
        worker = start(worker_slots=320, lease_seconds=60)
        yield World(settings, migrated, redis, deployment, Jobs(migrated, tenant), worker)
    redis.close()
