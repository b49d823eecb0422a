"""A tenant that has something of everything, and ways to look at all that is stored, wherever it is."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.auth.key_ring import KeyRing
from penstock.auth.models import User
from penstock.auth.services import Scope
from penstock.db import Base, Database
from penstock.events.services import place_committed
from penstock.ids import new_id
from penstock.jobs import lease
from penstock.jobs.lease import Finish
from penstock.jobs.states import JobState
from penstock.metrics import ControlMetrics
from penstock.retention.sweeping import RetentionSweeper
from penstock.settings import Settings
from penstock.usage.budgets import set_budget
from penstock.webhooks.models import WebhookDelivery
from penstock.webhooks.retries import Answer
from penstock.webhooks.services import record_attempt, take_due
from redis import Redis
from sqlalchemy import select, text

from tests.platform.api.conftest import Caller
from tests.platform.batches.conftest import Bench, native
from tests.platform.batches.conftest import app as app
from tests.platform.batches.conftest import bench as bench
from tests.platform.batches.conftest import caller as caller
from tests.platform.batches.conftest import deployment as deployment
from tests.platform.batches.conftest import make_caller as make_caller
from tests.platform.batches.conftest import plain_logs as plain_logs
from tests.platform.batches.conftest import workshop as workshop

MARK = "zebra-in-the-prompt-4711"
"""What no other part of the tests writes: in prompts, outputs, tags, file lines and receivers' answers."""


@dataclass(frozen=True)
class Possessions:
    """The ids of what a tenant has."""

    job_id: str
    key: str
    response_id: str
    batch_id: str
    file_ids: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A bench with a sweeper, and an operator of another tenant."""

    bench: Bench
    operator: Caller
    sweeper: RetentionSweeper
    metrics: ControlMetrics
    database: Database
    redis: Redis
    files: Path

    @property
    def caller(self) -> Caller:
        return self.bench.caller

    def sweep(self) -> None:
        self.sweeper.sweep(threading.Event())

    def run_job(self, caller: Caller, mark: str = MARK, **body: Any) -> str:
        """Submit, claim and finish a job whose prompt and output hold the mark, its deliveries attempted once."""
        job_id = caller.submit(input={"prompt": mark}, **body)
        self.finish_next(mark)
        return job_id

    def finish_next(self, mark: str = MARK) -> None:
        held = self.bench.claim()
        assert held is not None
        self.bench.finish(held, text=mark)
        self.attempt_deliveries(mark)

    def attempt_deliveries(self, mark: str = MARK) -> None:
        with self.database.transaction() as session:
            waiting = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.status == "waiting")).all()
            for delivery_id in waiting:
                due = take_due(session, delivery_id, lease_seconds=30)
                assert due is not None
                record_attempt(session, due, Answer(5, 200, body=f"thanks for {mark}"))

    def furnish(self, caller: Caller, mark: str = MARK) -> Possessions:
        """Give the caller's tenant something of everything."""
        caller.post("/v1/webhook-endpoints", {"url": "http://127.0.0.1:9/hook", "description": mark})
        person = User(
            id=new_id("usr"), tenant_id=caller.tenant_id, email=f"{mark}@example.com", password_hash="x", role="member"
        )
        with self.database.transaction() as session:
            session.add(person)
            set_budget(session, caller.tenant_id, "EUR", 5)  # type: ignore[arg-type]  # a whole amount
        key = caller.post(
            "/v1/jobs",
            {"model": "tiny", "input": {"prompt": mark}, "tags": [mark], "metadata": {"note": mark},
             "webhook": {"url": "http://127.0.0.1:9/own"}},
            Idempotency_Key=f"{mark}-1",
        )  # fmt: skip
        self.finish_next(mark)
        caller.post(f"/v1/jobs/{key.json['id']}/retry")
        self.finish_next(mark)
        caller.post(f"/v1/jobs/{key.json['id']}/feedback", {"score": 0.5, "comment": mark})
        bulk = caller.post("/v1/bulk", {"action": "cancel", "filter": {"tag": mark}}).json
        assert caller.post(f"/v1/bulk/{bulk['id']}/cancel").status_code == 200
        self.bury(caller, mark)
        told = caller.post("/v1/responses", {"model": "tiny", "input": mark, "background": True}).json
        self.finish_next(mark)
        batch_id = self.bench_of(caller).make(
            [native(number, mark, custom_id=f"{mark}-{number}") for number in (1, 2)], metadata={"note": mark}
        )
        batch = self.bench_of(caller).run_to_end(batch_id)
        self.attempt_deliveries(mark)
        self.place()
        files = (batch["input_file_id"], batch["output_file_id"])
        return Possessions(key.json["id"], f"{mark}-1", told["id"], batch_id, files)

    def bury(self, caller: Caller, mark: str) -> None:
        """Make a dead letter of a job."""
        caller.submit(input={"prompt": mark})
        held = self.bench.claim()
        assert held is not None
        error = {"code": "engine_crashed", "message": f"it crashed at {mark}"}
        with self.database.transaction() as session:
            lease.finish(session, held, Finish(JobState.FAILED, [], prompt_tokens=2, error=error))

    def bench_of(self, caller: Caller) -> Bench:
        bench = self.bench
        return Bench(caller, bench.tender, bench.workshop, bench.worker_id, bench.deployment_id)

    def place(self) -> None:
        with self.database.transaction() as session:
            place_committed(session)

    def set(self, caller: Caller, **days: int) -> None:
        answer = self.operator.call("PATCH", f"/v1/admin/tenants/{caller.tenant_id}", days)
        assert answer.status_code == 200, answer.text

    def rows(self) -> dict[str, list[str]]:
        """Every row of every table as JSON; bytes are in hexadecimal."""
        with self.database.transaction() as session:
            return {
                table.name: list(session.scalars(text(f'SELECT row_to_json(t)::text FROM "{table.name}" AS t')))
                for table in Base.metadata.sorted_tables
            }

    def traces(self, *words: str) -> dict[str, list[str]]:
        """Where any of the words stands, as text or in bytes: rows by table, keys of Redis, paths of files."""
        wanted = [form for word in words for form in (word, word.encode().hex())]
        found = {
            name: hits
            for name, rows in self.rows().items()
            if (hits := [row for row in rows if any(word in row for word in wanted)])
        }
        in_redis = [key for key, value in redis_contents(self.redis) if any(word in key + value for word in wanted)]
        on_disk = [
            str(path)
            for path in self.files.rglob("*")
            if any(word in str(path) or (path.is_file() and word.encode() in path.read_bytes()) for word in words)
        ]
        places = {"redis": in_redis, "files": on_disk}
        return found | {place: hits for place, hits in places.items() if hits}


def redis_contents(redis: Any) -> Iterator[tuple[str, str]]:
    """Each key with what it holds, as text."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"stream": redis.xrange,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"hash": redis.hgetall,
    }
    for key in redis.scan_iter():
        yield key.decode(), str(readers[redis.type(key)](key))


@contextmanager
def days_ago(database: Database, days: int) -> Iterator[None]:
    """What the block makes was made so many days ago: by its ids, and by the times of its rows."""
    with pytest.MonkeyPatch.context() as patch:
        with database.transaction() as session:
            began = session.scalar(text("SELECT now()"))
        patch.setattr(
            "penstock.ids.time", SimpleNamespace(time_ns=lambda: time.time_ns() - days * 86_400 * 1_000_000_000)
        )
        yield
    with database.transaction() as session:
        for table in Base.metadata.sorted_tables:
            for column in {"created_at", "finished_at"} & set(table.c.keys()):
                if table.name not in ("audit_entry", "tenant", "api_key"):
                    moved = f'UPDATE "{table.name}" SET {column} = {column} - make_interval(days => :days)'
                    session.execute(text(f"{moved} WHERE {column} >= :began"), {"days": days, "began": began})


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process remembers of keys for two seconds has a test of its own."""
    monkeypatch.setattr(KeyRing.__init__, "__defaults__", (0.0,))


@pytest.fixture
def operator(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller((Scope.OPERATOR,))


@pytest.fixture
def stage(bench: Bench, operator: Caller, settings: Settings, database: Database, redis: Redis) -> Stage:
    files = Path(settings.files_url or "")
    shutil.rmtree(files, ignore_errors=True)  # what other tests left there
    metrics = ControlMetrics()
    sweeper = RetentionSweeper(database, redis, settings, metrics)
    return Stage(bench, operator, sweeper, metrics, database, redis, files)
