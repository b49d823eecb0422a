"""Fixtures that every test may use: a real PostgreSQL and a real Redis, started once, emptied before each test."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from alembic import command
from alembic.config import Config
from celery import Celery
from penstock.broker import make_celery, make_redis
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.settings import Settings
from penstock.tables import Base
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import text

# Read when Triton is first imported, which some models of `transformers` do: its kernels are interpreted here.
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parent.parent

# What only a GPU can run is collected only where one is; `make gpu-check` runs it there.
collect_ignore = [] if Path("/dev/nvidiactl").exists() else ["gpu"]


LONGEST = ("worker", "embedded", "browser", "openai_api", "acceptance", "bench", "examples", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rooms that take minutes begin first: of two processes none has one left when the other has nothing."""

    def rank(item: pytest.Item) -> int:
        room = item.nodeid.removeprefix("tests/").removeprefix("platform/").split("/")[0]
        return LONGEST.index(room) if room in LONGEST else len(LONGEST)

    items.sort(key=rank)


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
    with database.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    yield database
    database.close()


@pytest.fixture
def database(migrated: Database) -> Database:
    """The test database, empty."""
    names = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
    with migrated.transaction() as session:
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    return migrated


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
