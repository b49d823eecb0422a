"""The worker's pulse: leases, cancels and deadlines, checkpoints, and what the tables `worker` and `hosting`
say of us.

One thread with a database connection of its own, so that no queue for connections can cost a lease.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.lease import Held, Renewal
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger
from penstock.registry import hosting_services
from penstock.registry.hosting_services import HostingReport, WorkerCard
from penstock.settings import Settings
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from penstock_worker.held import HeldJobs
from penstock_worker.hosting import Host
from penstock_worker.journal_writer import JournalWriter
from penstock_worker.patience import DATABASE_OUTAGE
from penstock_worker.running import Finished, Lost, RunningJob

_LONGEST_BEAT_SECONDS: Final = 1.0
_RENEWALS_PER_LEASE: Final = 3

log = get_logger(__name__)


class Heartbeat:
    """Beats at least every second; `wake` makes it beat at once. `drain` is called when an operator asks for that."""

    def __init__(
        self,
        settings: Settings,
        card: WorkerCard,
        database: Database,
        held: HeldJobs,
        writer: JournalWriter,
        *,
        drain: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._card = card
        self._database = database
        self._held = held
        self._writer = writer
        self._drain = drain
        self._renewal_seconds = settings.lease_seconds / _RENEWALS_PER_LEASE
        self._beat_seconds = min(_LONGEST_BEAT_SECONDS, self._renewal_seconds, settings.checkpoint_seconds)
        self._reported: dict[str, HostingReport] = {}
        self._renewed_at = self._checkpointed_at = float("-inf")
        self._wake = threading.Event()
        self._claimed_at = self._claim_told_at = time.monotonic()
        self.draining = False

    def note_claim(self) -> None:
        """A job was claimed; the next beat says so."""
        self._claimed_at = time.monotonic()

    def wake(self) -> None:
        """Beat now: something changed that others wait for."""
        self._wake.set()

    def run(self, host: Host, stop: threading.Event) -> None:
        """Beat until `stop` is set."""
        while not stop.is_set():
            self._watch_engines(host)
            self._attempt(self._tend_leases)
            self._attempt(self._checkpoint)
            self._attempt(lambda: self._report(host))
            self._wake.wait(self._beat_seconds)
            self._wake.clear()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Whatever fails for want of a database is tried again at the next beat."""
        try:
            work()
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="heartbeat", error=type(error).__name__)

    def _due(self, last: float, period: float) -> bool:
        """Whether this beat is nearer to the end of the period than the next one will be."""
        return time.monotonic() - last >= period - self._beat_seconds / 2

    def _watch_engines(self, host: Host) -> None:
        for model in host.models:
            if (bridge := model.live_bridge) is not None:
                bridge.pause(self._writer.backlogged)
                bridge.watch()

    # Leases

    def _tend_leases(self) -> None:
        """Renew when a third of the lease has gone; at every other beat only look for what is to be stopped."""
        jobs = self._newest([job for job, bridge in self._held.snapshot() if bridge.lively])
        if self._due(self._renewed_at, self._renewal_seconds):
            self._renew(jobs)
        elif jobs:
            with self._database.transaction() as session:
                found = _to_be_stopped(session, [job.held for job in jobs])
            for job in jobs:
                self._stop_if_asked(job, found.get(job.id))

    def _newest(self, jobs: Sequence[RunningJob]) -> list[RunningJob]:
        """Of several runs of one job, the one with the highest fence: the others were lost before it was claimed."""
        newest = {job.id: job for job in sorted(jobs, key=lambda job: job.fence)}
        for job in jobs:
            if newest[job.id] is not job:
                self._lose(job)
        return list(newest.values())

    def _lose(self, job: RunningJob) -> None:
        """The job is no longer ours, unless it has ended by itself just now."""
        if job.end(Lost()):
            log.warning("lease.lost", job=job.id, fence=job.fence)
            self._writer.mark(job)

    def _renew(self, jobs: Sequence[RunningJob]) -> None:
        before = time.monotonic()
        lease_seconds = self._settings.lease_seconds
        with self._database.transaction() as session:
            renewed = lease.renew(
                session, worker_id=self._card.id, held=[job.held for job in jobs], lease_seconds=lease_seconds
            )
        self._renewed_at = before
        for job in jobs:
            if job.id in renewed:
                job.lease_until = before + lease_seconds
                self._stop_if_asked(job, renewed[job.id])
            else:
                self._lose(job)

    def _stop_if_asked(self, job: RunningJob, renewal: Renewal | None) -> None:
        """End the run here and now, with the output as far as it has come."""
        if renewal is None or not job.restored:
            return
        for asked, state in (
            (renewal.cancel_requested, JobState.CANCELLED),
            (renewal.deadline_passed, JobState.EXPIRED),
        ):
            if asked and job.end(Finished(state), state.value):
                self._writer.mark(job)

    # Checkpoints

    def _checkpoint(self) -> None:
        """Copy the journals that have grown to PostgreSQL, in one transaction."""
        if not self._due(self._checkpointed_at, self._settings.checkpoint_seconds):
            return
        grown = [job for job, _ in self._held.snapshot() if job.ending is None and _has_grown(job)]
        progress = [job.progress for job in grown]
        if progress:
            with self._database.transaction() as session:
                lease.checkpoint(session, progress)
        for job, copied in zip(grown, progress, strict=True):
            job.checkpointed = len(copied.entries)
            job.meter.checkpointed_seconds = copied.spent.device_seconds if copied.spent is not None else 0.0
        self._checkpointed_at = time.monotonic()

    # What others may know

    def _report(self, host: Host) -> None:
        """Say that we live, and how each model stands; register again when we were taken for dead."""
        reports = host.reports
        claimed_at = self._claimed_at
        with self._database.transaction() as session:
            claimed = claimed_at > self._claim_told_at
            heard = hosting_services.heartbeat(session, self._card.id, draining=self.draining, claimed=claimed)
            if heard is None:
                hosting_services.register_worker(session, self._card)
                self._reported = {}
            for deployment_id, report in reports.items():
                if report != self._reported.get(deployment_id):
                    hosting_services.report(session, self._card.id, report)
            for deployment_id in self._reported.keys() - reports.keys():
                hosting_services.remove_hosting(session, self._card.id, deployment_id)
        self._reported, self._claim_told_at = reports, claimed_at
        if heard is not None and heard.drain_requested and not self.draining:
            self._drain()


def _has_grown(job: RunningJob) -> bool:
    """Whether there is something to copy: tokens, or time of the device that a prefill has taken."""
    if not job.restored:
        return False
    return len(job.entries) > job.checkpointed or job.meter.seconds > job.meter.checkpointed_seconds


def _to_be_stopped(session: Session, held: Sequence[Held]) -> dict[str, Renewal]:
    """Which of the jobs somebody cancelled, or whose deadline has passed. Writes nothing."""
    late = func.coalesce(Job.deadline <= func.clock_timestamp(), False)
    rows = session.execute(
        select(Job.id, Job.cancel_requested_at.is_not(None), late).where(
            Job.id.in_([item.job_id for item in held]), or_(Job.cancel_requested_at.is_not(None), late)
        )
    )
    return {job_id: Renewal(job_id, cancelled, expired) for job_id, cancelled, expired in rows}
