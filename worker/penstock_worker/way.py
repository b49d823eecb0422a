"""Shadow jobs make way: some slots stay free of them, and are free again as soon as others have taken them."""

import threading
from typing import Final

from penstock.fairness.kept_free import kept_free
from penstock.jobs.states import JobClass, RunOutcome
from penstock.logs import get_logger

from penstock_worker.held import HeldJobs
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.running import GivenBack, RunningJob

MADE_WAY: Final = GivenBack(RunOutcome.HANDED_BACK, "it made way for jobs that somebody waits for")

log = get_logger(__name__)


class Way:
    """Counts this worker's slots: how many shadow jobs may be claimed, and which go back when too many are held."""

    def __init__(self, held: HeldJobs, writer: JournalWriter, slots: int) -> None:
        self._held = held
        self._writer = writer
        self._open = slots - kept_free(slots)
        self._lock = threading.Lock()

    def room(self) -> int:
        """How many more shadow jobs there is room for."""
        return max(self._open - len(self._held), 0)

    def make(self) -> None:
        """Give shadow jobs back, those that began last, until enough slots are free or none is held."""
        with self._lock:  # of several that look at once none counts a job that another is just giving back
            jobs = [job for job, _ in self._held.snapshot() if job.ending is None]
            shadows = [job for job in jobs if job.job.job_class == JobClass.SHADOW]
            surplus = min(max(len(jobs) - self._open, 0), len(shadows))
            for job in sorted(shadows, key=lambda job: job.claimed_at)[len(shadows) - surplus :]:
                self._give_back(job)

    def _give_back(self, job: RunningJob) -> None:
        if job.end(MADE_WAY):
            log.info("job.made_way", job=job.id, fence=job.fence)
            self._writer.mark(job)
