"""A bounded number of places for requests that hold a thread for long, so that short ones always find one."""

import threading
from collections.abc import Callable


class Places:
    """So many may be inside at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many are inside now."""
        return self._taken

    def take(self) -> Callable[[], None] | None:
        """A place, given back by calling the answer (a second call does nothing); None when all are taken."""
        with self._lock:
            if self._taken >= self.count:
                return None
            self._taken += 1
        return _Place(self)

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1


class _Place:
    def __init__(self, places: Places) -> None:
        self._places: Places | None = places

    def __call__(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places._leave()
