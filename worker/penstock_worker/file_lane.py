"""The worker's lane of jobs that quantize and evaluate: beside the slots, in a process of its own each.

It claims by itself, about once a second: no doorbell names it, and no slot or place of an engine is taken.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from penstock.compressions.folders import MakingFolder, models_root
from penstock.compressions.lane import holder
from penstock.compressions.models import Compression
from penstock.db import Database
from penstock.fairness.counters import Due, charge
from penstock.jobs import lease
from penstock.jobs.journal import Journal
from penstock.jobs.lease import Claim
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.registry.models import LANE_ID
from penstock.settings import Settings
from penstock.tracing import traced_logs
from sqlalchemy import select

from penstock_worker.file_attempt import Attempt, Doors
from penstock_worker.patience import DATABASE_OUTAGE
from penstock_worker.tool_process import TOOL

POLL_SECONDS: Final = 1.0
_TURN_COST: Final = 1_000_000
"""What a job costs its tenant's counter in the lane: each counts alike, so tenants take turns."""

log = get_logger(__name__)


class FileLane:
    """Takes one job after the other. As many threads may `run` as the worker may do such jobs at once."""

    def __init__(
        self, settings: Settings, worker_id: str, database: Database, journal: Journal, *, tool: str = TOOL
    ) -> None:
        self._doors = Doors(settings, database, journal, holder(worker_id), models_root(settings), tool)

    def run(self) -> None:
        """Work until `close`; outages of PostgreSQL are waited out."""
        self._attempt(self._sweep)
        while not self._doors.closing.is_set():
            if not self._attempt(self.work_once):
                self._doors.closing.wait(POLL_SECONDS)

    def close(self) -> None:
        """Take nothing more, and hand back what is being done."""
        self._doors.closing.set()

    def give_up(self) -> None:
        """Wait no longer for a database that is away."""
        self._doors.impatient.set()

    def work_once(self) -> bool:
        """Do the job whose turn it is; False when none waits."""
        claimed = self._claim()
        if claimed is None:
            return False
        claim, row = claimed
        with traced_logs(claim.job.traceparent):
            Attempt(self._doors, claim, row).run()
        return True

    def _sweep(self) -> bool:
        try:
            return sweep(self._doors.database, self._doors.root)
        except OSError as error:
            log.warning("files.not_swept", folder=str(self._doors.root), error=str(error))
            return False

    def _claim(self) -> tuple[Claim, Compression] | None:
        with self._doors.database.transaction() as session:
            claim = lease.claim(
                session,
                worker_id=self._doors.holder,
                deployment_id=LANE_ID,
                lease_seconds=self._doors.settings.lease_seconds,
            )
            if claim is None:
                return None
            row = session.get_one(Compression, claim.job.id)
            charge(session, [Due(claim.job.id, _TURN_COST)])  # last: it locks a counter
            return claim, row

    def _attempt(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="files.claim", error=type(error).__name__)
            return False


def sweep(database: Database, root: Path) -> bool:
    """Remove the folders of jobs that have ended, or are gone: those of workers that died at the last moment."""
    for folder in MakingFolder.all_under(root):
        with database.transaction() as session:
            state = session.scalar(select(Job.state).where(Job.id == folder.job_id))
        if state is None or JobState(state).final:
            folder.remove()
            log.info("files.swept", job=folder.job_id)
    return True
