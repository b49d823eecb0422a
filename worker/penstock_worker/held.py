"""All jobs that this worker holds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from penstock_worker.bridge import Bridge
from penstock_worker.running import RunningJob


class HeldJobs:
    """The jobs and the engines that run them. A job's lease is renewed while it is here."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[RunningJob, Bridge]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    @contextmanager
    def holding(self, job: RunningJob, bridge: Bridge) -> Iterator[None]:
        """Hold the job for the length of the block."""
        with self._lock:
            self._jobs[job.request_id] = (job, bridge)
        try:
            yield
        finally:
            with self._lock:
                del self._jobs[job.request_id]

    def snapshot(self) -> list[tuple[RunningJob, Bridge]]:
        """The jobs held now, each with its engine."""
        with self._lock:
            return list(self._jobs.values())
