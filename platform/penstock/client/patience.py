"""How long an outage is borne."""

import time
from collections.abc import Callable

from penstock.client.backoff import pause
from penstock.errors import PenstockError

OnLost = Callable[[PenstockError], None]
"""Told of each failure after which another try is made."""


class Patience:
    """Waits between the tries of something that must outlast outages, and gives up after `seconds` without progress."""

    def __init__(self, seconds: float, on_lost: OnLost = lambda _error: None) -> None:
        self._seconds, self._on_lost = seconds, on_lost
        self._failures = 0
        self._failing_since = 0.0

    def note_progress(self) -> None:
        """All is well: the next failure is a first one."""
        self._failures = 0

    def bear(self, error: PenstockError) -> None:
        """Wait before another try, or raise the error when that would take too long."""
        time.sleep(self.pause_after(error))

    def pause_after(self, error: PenstockError) -> float:
        """The seconds to wait before another try. Raises the error when that would take too long."""
        if self._failures == 0:
            self._failing_since = time.monotonic()
        self._failures += 1
        seconds = max(pause(self._failures), float(error.extra.get("retry_after", 0)))
        if time.monotonic() + seconds - self._failing_since > self._seconds:
            raise error
        self._on_lost(error)
        return seconds
