"""A reading that is kept for a while, so that asking often costs no more than asking seldom."""

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_REST: Final = 10
"""A reading is kept for at least so many times as long as it took: however dear, it takes a tenth of the time."""


class Recent(Generic[T]):
    """What `read` returned last, read again when it is `seconds` old. Of several threads that ask at once one reads.

    What `read` raises is raised, and not kept.
    """

    def __init__(self, read: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._seconds, self._clock = read, seconds, clock
        self._lock = threading.Lock()
        self._kept: tuple[T, float] | None = None

    def get(self) -> T:
        """The reading, at most so old."""
        with self._lock:
            began = self._clock()
            if self._kept is None or began >= self._kept[1]:
                value = self._read()
                ended = self._clock()
                self._kept = (value, ended + max(self._seconds, _REST * (ended - began)))
            return self._kept[0]
