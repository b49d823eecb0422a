"""Waiting out an outage of PostgreSQL."""

import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from penstock.db import DATABASE_AWAY
from penstock.logs import get_logger
from sqlalchemy.exc import DBAPIError

DATABASE_OUTAGE: Final = DATABASE_AWAY
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0

T = TypeVar("T")
log = get_logger(__name__)


class GaveUp(Exception):
    """The process is stopping and the database still does not answer."""


def until_done(work: Callable[[], T], *, stop: threading.Event, what: str) -> T:
    """Do `work`, again and again while the database is away. Raises GaveUp when `stop` is set meanwhile."""
    wait = _FIRST_WAIT
    while True:
        try:
            return work()
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what=what, error=_brief(error))
            if stop.wait(wait * random.uniform(0.5, 1.5)):
                raise GaveUp(what) from error
            wait = min(2 * wait, _LONGEST_WAIT)


def _brief(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
