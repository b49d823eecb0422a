"""The states of a job and the moves between them; the database holds the same table as a trigger.

queued ──claim──▶ running ──▶ succeeded | failed | cancelled | expired
  ▲                  │
  └──── lost lease ──┘        queued ──▶ cancelled | expired | failed
"""

from enum import IntEnum, StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job stands. The last four are final; a retry is a new job with `retry_of`."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


class JobClass(IntEnum):
    """Who goes first: a lower class is served before any higher one."""

    INTERACTIVE = 0
    BATCH = 1
    SHADOW = 2


class RunOutcome(StrEnum):
    """How one lease-holding execution of a job ended. Only `crashed_alone` counts against the job itself."""

    FINISHED = "finished"
    CRASHED = "crashed"
    CRASHED_ALONE = "crashed_alone"
    LEASE_LOST = "lease_lost"
    HANDED_BACK = "handed_back"
