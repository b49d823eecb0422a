"""Where jobs went a moment ago: what a process prepares for before it opens the transaction that really chooses."""

import time
from collections.abc import Callable
from typing import Final

from penstock.db import Database
from penstock.routing.services import Route, find

_REMEMBERED_SECONDS: Final = 1.0
_MOST_MODELS: Final = 1000


class RecentRoutes:
    """Remembers the versions that each model's jobs last went to. Any thread may call."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._known: dict[str, tuple[Route, float]] = {}

    def of(self, model: str) -> Route:
        """Where a job that asks for `model` would have gone within the last second. Raises `ModelNotFound`."""
        now = self._clock()
        found, until = self._known.get(model, (None, 0.0))
        if found is None or now >= until:
            with self._database.transaction() as session:
                found = find(session, model)
            if len(self._known) >= _MOST_MODELS:
                self._known = {}
            self._known[model] = (found, now + _REMEMBERED_SECONDS)
        return found
