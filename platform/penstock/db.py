"""PostgreSQL: the declarative base, and `Database`, which opens transactions.

Services take a `Session` and never commit; whoever opens the transaction does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Final

import psycopg
from sqlalchemy import DateTime, Engine, MetaData, Text, create_engine, event, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from penstock.settings import Settings

DATABASE_AWAY: Final = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""What a database that is away, restarting, failing over or overloaded raises: the same statement may work later."""

_TRUSTED_SECONDS: Final = 1.0

# A frozen process must not keep rows locked: the server ends its transaction.
_SESSION_OPTIONS = " ".join(
    f"-c {option}"
    for option in (
        "idle_in_transaction_session_timeout=5000",
        "lock_timeout=5000",
        "statement_timeout=30000",
        "timezone=UTC",
    )
)


def one_of(column: str, values: type[StrEnum]) -> str:
    """SQL that holds a column to an enum's values."""
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Base(DeclarativeBase):
    """Every table's base; constraints get predictable names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
        list[str]: ARRAY(Text),
    }


def _note_use(_connection: object, entry: ConnectionPoolEntry) -> None:
    entry.info["used_at"] = time.monotonic()


def _ask_if_idle(connection: psycopg.Connection, entry: ConnectionPoolEntry, _proxy: object) -> None:
    """Have a connection replaced that broke while it lay in the pool.

    One that was used a moment ago is trusted: asking it costs a round trip, as much as a statement of the transaction.
    """
    if time.monotonic() - entry.info.get("used_at", 0.0) < _TRUSTED_SECONDS:
        return
    try:
        connection.execute("")
        connection.rollback()
    except psycopg.Error as error:
        raise DisconnectionError from error


def _tell_no_row(context: ExceptionContext) -> None:
    """Have an error say what broke and where, and nothing that stands in a row: its text goes into logs.

    PostgreSQL quotes values in DETAIL and CONTEXT, and those of class 22 (data exceptions) in the message itself.
    """
    error = context.original_exception
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return
    place = ".".join(filter(None, (error.diag.table_name, error.diag.column_name, error.diag.constraint_name)))
    quotes = error.sqlstate.startswith("22")
    said = [f"SQLSTATE {error.sqlstate}", place, "" if quotes else error.diag.message_primary]
    error.args = (": ".join(filter(None, said)),)
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (f"({type(error).__name__}) {error}",)


class Database:
    """A process's door to PostgreSQL."""

    def __init__(self, settings: Settings, *, pool_size: int | None = None) -> None:
        self.url = settings.database_url.get_secret_value()
        self.engine: Engine = create_engine(
            self.url,
            pool_size=pool_size or settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_wait_seconds,
            hide_parameters=True,  # an error's text goes into logs, where no prompt may be
            connect_args={"options": _SESSION_OPTIONS, "connect_timeout": 5, "application_name": "penstock"},
        )
        event.listen(self.engine, "handle_error", _tell_no_row)
        event.listen(self.engine, "checkin", _note_use)
        event.listen(self.engine, "checkout", _ask_if_idle)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose work is committed on leaving, or rolled back when an exception leaves it."""
        with self._sessions.begin() as session:
            yield session

    def ping(self) -> None:
        """Raise what the driver raises when PostgreSQL does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
