"""Fixtures that every test may use: a real PostgreSQL and a real Redis, started once, emptied before each test."""

import atexit
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import cast

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from celery import Celery
from flask import Flask
from penstock.app import create_app
from penstock.broker import make_celery, make_redis
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.settings import Settings
from penstock.tables import Base
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import event, text
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.factories import WordCounter

# What collecting makes is kept to the end: looking through it for garbage, then and later, takes seconds.
gc.disable()

# Read when Triton is first imported, which some models of `transformers` do: its kernels are interpreted here.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent

# What only a GPU can run is collected only where one is; `make gpu-check` runs it there.
collect_ignore = [] if Path("/dev/nvidiactl").exists() else ["gpu"]


GROWN = """
    SELECT bool_or(pg_total_relation_size(oid) > 1024 * 1024) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
REWIND = """
    SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false) FROM pg_sequences
    WHERE last_value IS NOT NULL
"""

_TURNS = count()

FIRST = (
    "worker/test_bridge.py",  # compiles the processor's kernels, for all that come after it
    "kernels/test_compile.py",
    "platform/embedded/test_life.py",
    "worker/test_lifecycle.py",
    "platform/embedded/test_up.py",
    "browser/test_live_page.py",
)
"""Files for the processes to begin with: engines that start at once would compile the same kernels."""
LONGEST = ("worker", "embedded", "browser", "openai_api", "acceptance", "bench", "examples", "cli")
ONE_HOUSE = ("tests/platform/openai_api", "tests/acceptance/promises", "tests/registry", "tests/browser")
"""Rooms whose files share a fixture that takes seconds to start: one process runs them all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first: of several processes none has it left when the others have nothing."""

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.removeprefix("tests/").partition("::")[0]
        if file in FIRST:
            return FIRST.index(file) - len(FIRST)
        room = file.removeprefix("platform/").split("/")[0]
        return LONGEST.index(room) if room in LONGEST else len(LONGEST)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()

    atexit.register(gc.unfreeze)  # what is still there at the very end extensions take for leaks, and say so


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """Gives a process a file at a time, or a room of `ONE_HOUSE`."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        room = file.rpartition("/")[0]
        return room if room in ONE_HOUSE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Every run in several processes is by file: modules share fixtures that take seconds to start."""
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """No test inherits what another left in the environment: MLflow's client puts its server's address there."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture(scope="session")
def services() -> Iterator[EmbeddedServices]:
    """PostgreSQL and Redis from pip, on a folder of this test session's own."""
    with tempfile.TemporaryDirectory(prefix="penstock-tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # under root the database runs as another user, who must get through
        with EmbeddedServices(Path(folder) / "state", mlflow=False, durable=False) as running:
            yield running


@pytest.fixture(scope="session")
def settings(services: EmbeddedServices) -> Settings:
    """Settings for the test's services, with short leases."""
    return Settings(
        database_url=SecretStr(services.database_url),
        redis_url=SecretStr(services.redis_url),
        secret_key=SecretStr("only-for-tests"),
        environment="test",
        lease_seconds=2.0,
        sweep_seconds=0.2,
        webhook_allow_loopback=True,
        files_url=str(services.folder.root / "files"),
        log_format="console",
    )


@pytest.fixture(scope="session")
def migrated(settings: Settings) -> Iterator[Database]:
    """The test database, migrated to the newest revision."""
    database = Database(settings)
    event.listen(database.engine, "connect", _be_patient)
    with database.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    yield database
    database.close()


def _be_patient(connection: psycopg.Connection, _record: object) -> None:
    """Tests hold transactions open on purpose: on a slow machine for longer than a process may that has frozen."""
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()


@pytest.fixture
def database(migrated: Database) -> Database:
    """The test database, empty."""
    empty(migrated)
    return migrated


def empty(database: Database) -> None:
    """No row is left, and every sequence begins anew; whoever still writes is waited for.

    A TRUNCATE makes every file of every table and index anew, a tenth of a second for each test. Rows are deleted
    therefore, until what they leave behind has grown, which is looked at now and then.
    """
    names = [f'"{table.name}"' for table in Base.metadata.sorted_tables]
    together = ", ".join(names)
    with database.transaction() as session:
        session.execute(text(f"LOCK TABLE {together} IN ACCESS EXCLUSIVE MODE"))
        if next(_TURNS) % 20 == 0 and session.scalar(text(GROWN)):
            session.execute(text(f"TRUNCATE {together} CASCADE"))
        else:
            session.execute(text("; ".join(f"DELETE FROM {name}" for name in reversed(names))))
        session.execute(text(REWIND))


@pytest.fixture(scope="session")
def routed(settings: Settings, migrated: Database) -> Flask:
    """An application whose routes are compiled, which takes a tenth of a second, for `tests.serving.renewed`."""
    return create_app(settings, prompts=WordCounter(), database=migrated)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """The test Redis, empty."""
    client = make_redis(settings)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def celery_app(settings: Settings) -> Iterator[Celery]:
    """A Celery application on the test Redis."""
    app = make_celery(settings)
    yield app
    cast(Celery, app).close()
