"""`penstock control` as a process of its own: it delivers webhooks, outlives Redis, and ends in order."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from penstock.broker import make_redis
from penstock.control import Companions
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.jobs import services as jobs
from penstock.migrate import upgrade
from penstock.settings import Settings
from penstock.webhooks.models import WebhookDelivery
from pydantic import SecretStr
from sqlalchemy import select
from standardwebhooks import Webhook

from tests.factories import make_deployment, make_tenant, submit_job
from tests.platform.webhooks.receiver import Receiver, Reply, receiving


@pytest.fixture(scope="module")
def own_settings() -> Iterator[Settings]:
    """Services of this module's own, whose Redis may be killed."""
    with tempfile.TemporaryDirectory(prefix="penstock-tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedServices(Path(folder) / "state", mlflow=False, durable=False) as running:
            yield Settings(
                database_url=SecretStr(running.database_url),
                redis_url=SecretStr(running.redis_url),
                sweep_seconds=0.2,
                webhook_allow_loopback=True,
            )


@pytest.fixture(scope="module")
def own_database(own_settings: Settings) -> Iterator[Database]:
    upgrade(own_settings)
    database = Database(own_settings)
    with database.transaction() as session:
        make_deployment(session)
    yield database
    database.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@contextmanager
def control(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, while the block runs."""
    environment = os.environ | {
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_SWEEP_SECONDS": "0.2",
        "PENSTOCK_WEBHOOK_ALLOW_LOOPBACK": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "control"], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def owe(database: Database, receiver: Receiver) -> str:
    """Owe the receiver a webhook; returns the secret that signs it."""
    with database.transaction() as session:
        tenant = make_tenant(session)
        job = submit_job(session, tenant, webhook={"url": receiver.url})
        jobs.cancel(session, tenant.id, job.id)
        return tenant.webhook_secret


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the condition while the process lives."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def statuses(database: Database) -> set[str]:
    with database.transaction() as session:
        return set(session.scalars(select(WebhookDelivery.status)))


def test_webhooks_are_delivered_through_a_death_of_redis_and_to_the_end(
    own_settings: Settings, own_database: Database, receiver: Receiver, tmp_path: Path
) -> None:
    log = tmp_path / "control.log"
    with control(own_settings, log) as process:
        secret = owe(own_database, receiver)
        until(lambda: len(receiver.requests) == 1, process, log)
        assert (
            Webhook(secret).verify(receiver.requests[0].body, receiver.requests[0].headers)["type"] == "job.cancelled"
        )

        redis = make_redis(own_settings)
        os.kill(int(redis.info("server")["process_id"]), signal.SIGKILL)
        owe(own_database, receiver)
        until(lambda: len(receiver.requests) == 2, process, log)
        redis.close()

        # Told to end while an answer is on its way: the attempt is finished and noted first.
        receiver.replies.append(Reply(200, body=b"slowly", drip=0.2))
        owe(own_database, receiver)
        until(lambda: len(receiver.requests) == 3, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    assert statuses(own_database) == {"delivered"}
    assert "Traceback" not in log.read_text()
    assert "whsec_" not in log.read_text()


@pytest.fixture
def terminations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the signals that companions would send to this process."""
    sent: list[int] = []
    monkeypatch.setattr("penstock.control.os.kill", lambda _pid, number: sent.append(number))
    return sent


def test_a_companion_that_fails_ends_the_process(terminations: list[int]) -> None:
    def fail(stop: threading.Event) -> None:
        raise RuntimeError("unforeseen")

    companions = Companions()
    companions.start("fails", fail)
    companions.stop()
    assert companions.failed
    assert terminations == [signal.SIGTERM]


def test_companions_that_end_when_told_are_no_failure(terminations: list[int]) -> None:
    def wait(stop: threading.Event) -> None:
        stop.wait()

    companions = Companions()
    companions.start("one", wait)
    companions.stop()
    assert not companions.failed
    assert terminations == []
