"""What bulk operations do and where they and their items stand; the database holds the same names.

gathering ──▶ running ──▶ completed
    └────────────┴──────▶ cancelled
"""

from enum import StrEnum
from typing import Final


class BulkAction(StrEnum):
    """What is done to each item: jobs are cancelled or submitted again, dead letters submitted again or put away."""

    CANCEL = "cancel"
    REPLAY = "replay"
    REPLAY_DEAD_LETTERS = "replay_dead_letters"
    DISCARD_DEAD_LETTERS = "discard_dead_letters"


class BulkState(StrEnum):
    """Where an operation stands: it lists what it is about, then does it. The last two stay."""

    GATHERING = "gathering"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in UNFINISHED


UNFINISHED: Final = (BulkState.GATHERING, BulkState.RUNNING)
OPERATORS_ACTIONS: Final = (BulkAction.REPLAY_DEAD_LETTERS, BulkAction.DISCARD_DEAD_LETTERS)
"""What reaches over all tenants, so that only operators see it."""


class ItemState(StrEnum):
    """Where an item stands. A `skipped` one needed nothing, or no longer could have it."""

    READY = "ready"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
