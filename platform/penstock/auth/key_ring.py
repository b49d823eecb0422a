"""Keys that a process has seen a moment ago, so that a busy caller costs the database one look in two seconds."""

import time
from typing import Final

from penstock.auth.keys import check_key, digest_of
from penstock.auth.services import Principal, authenticate
from penstock.db import Database

REMEMBERED_SECONDS: Final = 2.0
"""How long a revoked or expired key may still be taken by a process that has just seen it."""

_MOST_KEYS: Final = 10_000


class KeyRing:
    """Says whose a key is. Only valid keys are remembered, by their digests."""

    def __init__(self, database: Database, environment: str, seconds: float = REMEMBERED_SECONDS) -> None:
        self._database, self._environment, self._seconds = database, environment, seconds
        self._known: dict[bytes, tuple[Principal, float]] = {}

    def principal(self, presented: str) -> Principal:
        """Who presents the key. Raises `Unauthenticated` as `authenticate` does."""
        check_key(presented, self._environment)
        digest = digest_of(presented)
        principal, until = self._known.get(digest, (None, 0.0))
        if principal is not None and time.monotonic() < until:
            return principal
        until = time.monotonic() + self._seconds
        with self._database.transaction() as session:
            principal = authenticate(session, presented, environment=self._environment)
        if len(self._known) >= _MOST_KEYS:
            self._known = {}
        self._known[digest] = (principal, until)
        return principal
