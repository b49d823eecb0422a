"""Work that threads ask for at the same time, done in one go: as a database commits transactions in groups."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class GroupFailed(Exception):
    """The work of a whole group failed; `__cause__` says how."""


class _Asked(Generic[T, R]):
    """One thread's part of a group."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False
        self.result: R
        self.error: Exception | None = None


class Together(Generic[T, R]):
    """Whoever finds nobody at work does `work` for all that wait by then, and nobody waits for a timer.

        thread 1  ask ──▶ work([1]) ─────────▶ result
        thread 2     ask ┄┄┄┄┄┄┄┄┄┄┄▶ work([2, 3]) ──▶ result
        thread 3       ask ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▶ result

    `work` answers each item in its place. It runs in the thread of one of those that ask, one group at a time.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]]) -> None:
        self._work = work
        self._waiting: list[_Asked[T, R]] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def ask(self, item: T) -> R:
        """The item's result. Raises GroupFailed to everyone of a group whose work raised anything."""
        asked: _Asked[T, R] = _Asked(item)
        with self._lock:
            self._waiting.append(asked)
        with self._turn:
            if not asked.done:
                self._serve()
        if asked.error is not None:
            raise GroupFailed from asked.error
        return asked.result

    def _serve(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        try:
            results = self._work([asked.item for asked in group])
            for asked, result in zip(group, results, strict=True):
                asked.result = result
        except Exception as error:  # whatever it is, those that wait must hear of it
            for asked in group:
                asked.error = error
        for asked in group:
            asked.done = True
