"""Bringing the database's tables to this version, by one starter at a time."""

import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from penstock.errors import ServiceUnavailable
from penstock.settings import Settings, variable_name

_LOCK: Final = 0x70656E6D69677261  # "penmigra", in the database's space of advisory locks
_ASK_SECONDS: Final = 0.2


def upgrade(settings: Settings) -> tuple[str | None, str | None]:
    """Apply the migrations that are missing; returns the revision before and after. Others that start meanwhile wait.

    The lock is the session's, so it goes when this process does, however it ends. Raises `ServiceUnavailable`.
    """
    # An engine of its own: migrations and waiting for the lock may take longer than the platform lets a statement.
    engine = create_engine(
        settings.database_url.get_secret_value(),
        poolclass=NullPool,
        connect_args={"connect_timeout": 5, "application_name": "penstock-migrate"},
    )
    try:
        connection = engine.connect()
    except OperationalError as error:
        raise not_answering(error) from error
    with connection:
        _wait_for_turn(connection)
        before = _revision(connection)
        command.upgrade(_config(connection), "head")
        connection.commit()
        return before, _revision(connection)


def _wait_for_turn(connection: Connection) -> None:
    """Asks again and again: an index that is built CONCURRENTLY waits for every statement, also for one that waits."""
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.rollback()
        time.sleep(_ASK_SECONDS)
    connection.commit()


def not_answering(error: OperationalError) -> ServiceUnavailable:
    """The driver's failure to connect, in one line that names the setting."""
    reason = " ".join(str(error.orig).split())
    return ServiceUnavailable(f"{variable_name('database_url')}: PostgreSQL does not answer: {reason}")


def migrations_folder() -> Path:
    """Where the migrations are: in the installed package, else in the repository."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return revision
