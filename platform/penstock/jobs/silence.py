"""Whether PostgreSQL has answered for so long that a lease which ran out speaks against its holder."""

import time
from collections.abc import Callable
from typing import Final

_LONG: Final = 0.5
"""Of a lease: a holder renews every third, so one that could not for less than half of it has still not lost it."""


class Silence:
    """How long PostgreSQL has let this process wait. One thread's own.

    What counts is not which error came, but how long nothing answered: a connection that breaks alone is answered by
    the next one at once, whereas a server that hangs raises no error at all.
    """

    def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._asked_at: float | None = None
        self._ended_at = float("-inf")

    def asked(self) -> None:
        """Something is asked of the server, for the first time or again."""
        if self._asked_at is None:
            self._asked_at = self._clock()

    def answered(self) -> None:
        """The server answered; if that took long, holders may have waited as long."""
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at > self._lease_seconds * _LONG:
            self._ended_at = now
        self.forget()

    def forget(self) -> None:
        """What was asked came to nothing, and not because of the server."""
        self._asked_at = None

    @property
    def long_over(self) -> bool:
        """Whether holders have had a whole lease to renew since the last long silence."""
        return self._clock() - self._ended_at >= self._lease_seconds
