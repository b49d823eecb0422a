"""Sends every running job's new entries to Redis, one call for all of them, and keeps them while Redis is
away.

One thread. Jobs are marked when they have new entries or have ended; a job's `settled` is set once its last
entries were tried. Tokens live in memory until Redis has them, and PostgreSQL gets them by the checkpoints,
so an outage loses nothing.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from penstock.errors import LeaseLost
from penstock.jobs.journal import Append, AppendResult, Journal, Round
from penstock.logs import get_logger
from redis.exceptions import RedisError

from penstock_worker.running import Lost, RunningJob

MOST_UNWRITTEN_ENTRIES: Final = 100_000
"""Entries that may wait for Redis before the engines are paused."""
_RETRY_SECONDS: Final = 0.25
_IDLE_SECONDS: Final = 0.5
_LEASE_MARGIN_SECONDS: Final = 0.2
"""For the way to Redis: nothing is sent so shortly before a lease may run out."""

log = get_logger(__name__)


@dataclass(slots=True)
class _Round:
    """What one round writes: jobs with new entries, finished jobs whose journal may go, jobs with new events."""

    marked: dict[str, RunningJob] = field(default_factory=dict)
    closing: dict[str, RunningJob] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.marked or self.closing or self.announced)


class JournalWriter:
    """The one writer of this worker's journals. `fenced` is called when Redis refuses what a lost lease would write."""

    def __init__(self, journal: Journal, *, linger_seconds: int, fenced: Callable[[], None] = lambda: None) -> None:
        self._journal = journal
        self._linger_seconds = linger_seconds
        self._fenced = fenced
        self._next = _Round()
        self._changed = threading.Condition()
        self._failing = False
        self._backlog = 0

    @property
    def backlogged(self) -> bool:
        """Whether so much waits for Redis that no more should be generated."""
        return self._backlog > MOST_UNWRITTEN_ENTRIES

    def mark(self, *jobs: RunningJob) -> None:
        """These jobs have new entries, or have ended."""
        with self._changed:
            self._next.marked.update((job.request_id, job) for job in jobs)
            self._changed.notify()

    def close(self, job: RunningJob) -> None:
        """The job's result is in PostgreSQL: its journal may go after a while."""
        with self._changed:
            self._next.closing[job.request_id] = job
            self._next.announced.append(job.id)
            self._changed.notify()

    def announce(self, job_id: str) -> None:
        """Live readers should look at the job's events."""
        with self._changed:
            self._next.announced.append(job_id)
            self._changed.notify()

    def run(self, stop: threading.Event) -> None:
        """Write until `stop` is set and nothing is left that Redis would take."""
        while not stop.is_set() or (self._next and not self._failing):
            if not self._write(self._take_round()):
                stop.wait(_RETRY_SECONDS)

    def _take_round(self) -> _Round:
        with self._changed:
            if not self._next:
                self._changed.wait(_IDLE_SECONDS)
            taken, self._next = self._next, _Round()
        return taken

    def _write(self, work: _Round) -> bool:
        """One round. False when it should be tried again later: Redis is away, or a lease is in doubt."""
        if not work:
            return True
        ended = {key: job for key, job in work.marked.items() if job.ending is not None}  # complete
        doubtful = {key: job for key, job in work.marked.items() if not _may_write(job)}
        try:
            sure = {key: job for key, job in work.marked.items() if key not in doubtful}
            self._send(sure | work.closing, work)  # a job with a result was ours: what is left of it may go
            self._note_failure(None)
            left = _Round(marked=doubtful)
        except RedisError as error:
            self._note_failure(error)
            left = work
        left.marked = {key: job for key, job in left.marked.items() if key not in ended}
        self._put_back(left)
        for job in ended.values():
            job.settled.set()
        return not left

    def _send(self, jobs: dict[str, RunningJob], work: _Round) -> None:
        pairs = [(job, entries) for job in jobs.values() if (entries := job.entries[job.journalled :])]
        appends = [Append(job.id, job.fence, job.journalled, entries) for job, entries in pairs]
        closing = [(job.id, job.fence) for job in work.closing.values()]
        results = self._journal.write(Round(appends, closing, self._linger_seconds, work.announced))
        for (job, entries), result in zip(pairs, results, strict=True):
            self._note(job, len(entries), result)
            if result is AppendResult.EMPTIED and job.request_id in work.closing:
                self._journal.close(job.id, job.fence, self._linger_seconds)

    def _note(self, job: RunningJob, entries: int, result: AppendResult) -> None:
        match result:
            case AppendResult.DONE:
                job.journalled += entries
            case AppendResult.FENCED:
                self._fenced()
                _lose(job)
            case AppendResult.EMPTIED:
                self._rewrite(job)

    def _rewrite(self, job: RunningJob) -> None:
        """Redis lost the journal; memory has it."""
        entries = list(job.entries)
        try:
            self._journal.rewrite(job.id, job.fence, entries)
        except LeaseLost:
            _lose(job)
        else:
            job.journalled = len(entries)
            log.warning("journal.rewritten", job=job.id, entries=len(entries))

    def _put_back(self, left: _Round) -> None:
        with self._changed:
            self._next.marked = left.marked | self._next.marked
            self._next.closing = left.closing | self._next.closing
            self._next.announced = left.announced + self._next.announced
            self._backlog = sum(len(job.entries) - job.journalled for job in self._next.marked.values())

    def _note_failure(self, error: RedisError | None) -> None:
        if error is not None and not self._failing:
            log.warning("journal.unreachable", error=type(error).__name__, detail=str(error))
        if error is None and self._failing:
            log.info("journal.reachable_again")
        self._failing = error is not None


def _may_write(job: RunningJob) -> bool:
    """Not once the lease may have run out: until it is renewed, the job may have another holder."""
    return time.monotonic() < job.lease_until - _LEASE_MARGIN_SECONDS and not isinstance(job.ending, Lost)


def _lose(job: RunningJob) -> None:
    """A later holder has the journal."""
    if job.end(Lost()):
        log.warning("lease.lost", job=job.id, fence=job.fence)
    job.settled.set()
