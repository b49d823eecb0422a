"""Writing down how jobs' runs ended, fenced; outages of PostgreSQL are waited out.

Jobs that finish while others are being written down are written down together, in one transaction. Where that fails,
for whatever reason, each is written alone: one job's fault is its own.
"""

import threading
from collections.abc import Sequence
from typing import Final

from penstock.db import Database
from penstock.errors import LeaseLost
from penstock.jobs import lease
from penstock.jobs.lease import Held
from penstock.jobs.models import Job
from penstock.jobs.states import RunOutcome
from penstock.logs import get_logger
from penstock.usage.accounting import CHARGED
from sqlalchemy import select

from penstock_worker.journal_writer import JournalWriter
from penstock_worker.patience import GaveUp, until_done
from penstock_worker.running import Finished, GivenBack, RunningJob
from penstock_worker.together import GroupFailed, Together
from penstock_worker.worker_metrics import EngineMetrics

_LOST: Final = RunOutcome.LEASE_LOST

log = get_logger(__name__)


class Results:
    """Ends runs in PostgreSQL. `stop` ends the patience with an outage: the reaper then takes the job back."""

    def __init__(
        self, database: Database, writer: JournalWriter, stop: threading.Event, *, max_own_crashes: int
    ) -> None:
        self._database = database
        self._writer = writer
        self._stop = stop
        self._max_own_crashes = max_own_crashes
        self._ends = Together(self._finish_all)

    def write(self, job: RunningJob, metrics: EngineMetrics) -> None:
        """Write the ending of a settled job. Nothing is written when the lease is lost."""
        outcome = _LOST
        try:
            match job.ending:
                case Finished() as finished:
                    metrics.job_finished(self._finish(job, finished))
                    log.info("job.finished", job=job.id, state=finished.state.value, entries=len(job.entries))
                    self._writer.close(job)
                    outcome = RunOutcome.FINISHED
                case GivenBack() as given_back:
                    until_done(lambda: self._hand_back(job, given_back), stop=self._stop, what="results.hand_back")
                    self._writer.announce(job.id)
                    outcome = given_back.outcome
        except LeaseLost:
            metrics.note_fenced("result")
            log.warning("lease.lost", job=job.id, fence=job.fence)
        except GaveUp:
            log.error("results.gave_up", job=job.id, fence=job.fence)
        metrics.run_ended(
            outcome.value,
            charged_seconds=job.meter.charged_seconds if outcome.value in CHARGED else 0.0,
            device_seconds=job.meter.spent.device_seconds,
        )

    def _finish(self, job: RunningJob, ending: Finished) -> Job:
        """Raises LeaseLost, GaveUp."""
        result = lease.Finish(
            state=ending.state,
            entries=job.entries,
            prompt_tokens=len(job.prompt_ids) or job.job.prompt_tokens or 0,
            spent=job.meter.spent,
            first_token_seconds=job.first_token_seconds,
            error=ending.error,
            untold_tokens=job.untold_tokens,
        )
        try:
            finished = self._ends.ask((job.held, result))
        except GroupFailed as failed:
            log.info("results.alone", job=job.id, error=type(failed.__cause__).__name__)
            return until_done(lambda: self._finish_alone(job.held, result), stop=self._stop, what="results.finish")
        if finished is None:
            raise LeaseLost(f"{job.id} is no longer held with fence {job.fence}")
        return finished

    def _finish_all(self, ends: Sequence[tuple[Held, lease.Finish]]) -> list[Job | None]:
        with self._database.transaction() as session:
            return lease.finish_all(session, ends)

    def _finish_alone(self, held: Held, result: lease.Finish) -> Job:
        with self._database.transaction() as session:
            return lease.finish(session, held, result)

    def _hand_back(self, job: RunningJob, ending: GivenBack) -> None:
        """Every token goes to PostgreSQL with it, so that the next run starts there even if Redis is away."""
        with self._database.transaction() as session:
            session.execute(select(Job.id).where(Job.id == job.id).with_for_update())  # `checkpoint` waits for no lock
            if job.restored:
                lease.checkpoint(session, [job.progress])
            lease.hand_back(
                session,
                job.held,
                ending.outcome,
                ending.reason,
                max_own_crashes=self._max_own_crashes,
                spent=job.meter.spent,
            )
        log.warning("job.handed_back", job=job.id, outcome=ending.outcome.value, reason=ending.reason)
