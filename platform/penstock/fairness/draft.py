"""Choosing several jobs at once, the same that as many claims would choose, one after the other.

Each choice pledges its prompt to its tenant's counter and is remembered as a prefix that the worker serves, so that the
next one may be another tenant's, or a job that begins alike. Pure but for `alike`, which looks into the queue.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from penstock.fairness.prefixes import RecentPrefixes

AGE_BUCKET: Final = timedelta(seconds=10)
"""Jobs that were queued within the same one count as equally old, so that those may go first that begin alike."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def bucket_end(queued_at: datetime) -> datetime:
    """When the bucket of age ends that a job is in."""
    return queued_at + AGE_BUCKET - (queued_at - _EPOCH) % AGE_BUCKET


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that may be claimed. `pledge` is what its claim adds to its tenant's counter until it is charged."""

    id: str
    priority: int
    deadline: datetime | None
    queued_at: datetime
    prefix: int | None
    pledge: int


@dataclass(frozen=True, slots=True)
class Level:
    """Jobs of a lane that stand level: among them, one that begins as what was served lately goes first."""

    job_class: int
    tenant_id: str
    priority: int
    deadline: datetime | None
    bucket_end: datetime


Alike = Callable[[Level, Collection[int]], list[Waiting]]
"""The jobs of a level that begin with one of the prefixes, those of each in the order of their age."""


@dataclass(slots=True)
class Lane:
    """What one tenant has waiting in one class: its first `jobs`, in order, at most `depth` of them."""

    job_class: int
    tenant_id: str
    charged: float
    pledged: int
    weight: float
    depth: int
    jobs: list[Waiting] = field(default_factory=list)

    def level_of(self, head: Waiting) -> Level:
        """The jobs that stand level with its first."""
        return Level(self.job_class, self.tenant_id, head.priority, head.deadline, bucket_end(head.queued_at))


class Draft:
    """One draft over the lanes of a deployment. `recent_prefixes` are those served last, the newest first."""

    def __init__(self, lanes: Sequence[Lane], recent_prefixes: Sequence[int], alike: Alike) -> None:
        self._lanes = lanes
        self._recent = RecentPrefixes.of(recent_prefixes)
        self._alike = alike
        self._prefixes = {job.prefix for lane in lanes for job in lane.jobs if job.prefix is not None}
        self._prefixes |= set(recent_prefixes)
        self._levels: dict[Level, list[Waiting]] = {}
        self._pledged = {lane.tenant_id: lane.pledged for lane in lanes}
        self._taken: dict[str, None] = {}

    def take(self, most: int) -> list[str]:
        """The ids of up to `most` jobs, in the order of their turns; no more than are sure to be the next."""
        while len(self._taken) < most and (turn := self._turn()) is not None:
            lane, head = turn
            chosen = self._chosen(lane, head)
            self._taken[chosen.id] = None
            self._pledged[lane.tenant_id] += chosen.pledge
            self._recent.note(chosen.prefix)
        return list(self._taken)

    def _turn(self) -> tuple[Lane, Waiting] | None:
        """The lane whose turn it is, and its first job; None where that may be one that was not looked at."""
        for lane in sorted(self._lanes, key=self._standing):
            head = next(self._left(lane), None)
            if head is not None:
                return lane, head
            if len(lane.jobs) >= lane.depth:
                return None
        return None

    def _standing(self, lane: Lane) -> tuple[int, float, str]:
        return lane.job_class, lane.charged + self._pledged[lane.tenant_id] / lane.weight, lane.tenant_id

    def _left(self, lane: Lane) -> Iterator[Waiting]:
        return (job for job in lane.jobs if job.id not in self._taken)

    def _chosen(self, lane: Lane, head: Waiting) -> Waiting:
        """The first, or another that stands level with it and begins as what was served lately."""
        recent = self._recent.newest_first()
        if not recent or head.prefix in recent:
            return head
        level = lane.level_of(head)
        if level not in self._levels:
            self._levels[level] = self._alike(level, self._prefixes)
        oldest = {job.prefix: job for job in reversed(self._levels[level]) if job.id not in self._taken}
        return next((oldest[prefix] for prefix in recent if prefix in oldest), head)
