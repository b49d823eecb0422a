"""A transaction for commands that work on the server's own database; what goes wrong with it is told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.settings import Settings, variable_name


@contextmanager
def transaction(settings: Settings) -> Iterator[Session]:
    """One transaction on the settings' database. Raises `ServiceUnavailable` naming what would help."""
    database = Database(settings, pool_size=1)
    try:
        with database.transaction() as session:
            yield session
    except OperationalError as error:
        raise ServiceUnavailable(
            f"{variable_name('database_url')}: PostgreSQL does not answer: {error.orig}"
        ) from error
    except ProgrammingError as error:
        reason = str(error.orig).partition("\n")[0]
        raise ServiceUnavailable(
            f"the database is not of this version ({reason}); run `penstock migrate` first"
        ) from error
    finally:
        database.close()
