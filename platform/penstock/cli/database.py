"""A transaction for commands that work on the server's own database; what goes wrong with it is told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from penstock.db import Database
from penstock.errors import ServiceUnavailable
from penstock.migrate import not_answering
from penstock.settings import Settings


@contextmanager
def transaction(settings: Settings) -> Iterator[Session]:
    """One transaction on the settings' database. Raises `ServiceUnavailable` saying what would help."""
    database = Database(settings, pool_size=1)
    try:
        with database.transaction() as session:
            yield session
    except OperationalError as error:
        raise not_answering(error) from error
    except ProgrammingError as error:
        reason = str(error.orig).partition("\n")[0]
        raise ServiceUnavailable(
            f"the database is not of this version ({reason}); run `penstock migrate` first"
        ) from error
    finally:
        database.close()
