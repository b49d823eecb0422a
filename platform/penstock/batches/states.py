"""The states of a batch and of its lines; the database holds the same names.

validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired
    │   │          │               ▲
    │   └──────────┼── expiry ─────┘
    │              └──▶ cancelling ──▶ cancelled
    └──▶ failed          (also from validating)

A paused batch is in_progress and makes no jobs; those that wait are held.
"""

from enum import StrEnum
from typing import Final


class BatchState(StrEnum):
    """Where a batch stands. Those of `FINAL` stay; a retry is a new batch with `retry_of`."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in FINAL


FINAL: Final = frozenset({BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED})
UNFINISHED: Final = tuple(state for state in BatchState if state not in FINAL)
RUNNING: Final = (BatchState.VALIDATING, BatchState.IN_PROGRESS)
"""States in which it can be paused, changed and cancelled."""
PAUSED: Final = "paused"
"""The status of a batch in progress that was paused."""


class LineState(StrEnum):
    """Where a line stands: `ready` has no job yet, `open` has one that waits or runs, all others are settled."""

    READY = "ready"
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INVALID = "invalid"


RETRYABLE: Final = (LineState.FAILED, LineState.EXPIRED, LineState.CANCELLED)
"""What may come out otherwise another time."""
