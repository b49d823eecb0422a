"""How many jobs tenants have waiting, as a process last saw it: what spares most submits the counting."""

import time
from collections.abc import Callable
from typing import Final

FASTEST: Final = 100_000.0
"""Jobs in a second that all processes together can never write: PostgreSQL would have to commit ten times as fast."""

_UNSEEN: Final = 1000  # jobs that transactions had written and not committed when they were counted
_LONGEST_SECONDS: Final = 1.0
_MOST_TENANTS: Final = 10_000


class Crowding:
    """Remembers counts for as long as they can tell: so many free places cannot be taken faster than `FASTEST`.

    Any thread may call. Near a limit it knows nothing, so there every submit counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, tenant_id: str, count: Callable[[], int]) -> int:
        """How many jobs wait, as `count` tells, remembered."""
        if len(self._seen) >= _MOST_TENANTS:
            self._seen = {}
        began = self._clock()
        waiting = count()
        self._seen[tenant_id] = (waiting, began)
        return waiting

    def knows_room(self, tenant_id: str, most: int) -> bool:
        """Whether fewer than `most` wait for certain."""
        waiting, seen_at = self._seen.get(tenant_id, (most, 0.0))
        age = self._clock() - seen_at
        return age < _LONGEST_SECONDS and waiting + age * FASTEST < most - _UNSEEN
