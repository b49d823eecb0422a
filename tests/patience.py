"""Waiting for what other processes and threads do."""

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

PATIENCE_SECONDS: Final = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.02  # what is to be disturbed while it runs must be seen in time
T = TypeVar("T")


def looks(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """As many looks as fit into so many seconds, with pauses that grow between them."""
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(1.3 * pause, LONGEST_PAUSE)
        yield


def eventually(look: Callable[[], T | None], what: str, patience: float = PATIENCE_SECONDS) -> T:
    """What `look` finds as soon as it finds anything, within `patience` seconds."""
    for _ in looks(patience):
        if found := look():
            return found
    raise AssertionError(f"waited {patience:.0f} s in vain for {what}")
