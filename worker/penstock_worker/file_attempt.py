"""One claim of a job that works on a model's files: held while there is life in it, and its end written down.

The lease lives by the tool's signs of life (a line, or processor time), so a tool that hangs loses the job like one
that died.
"""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.compressions.folders import MakingFolder
from penstock.compressions.gathering import Gathered, Gatherer
from penstock.compressions.models import Compression
from penstock.compressions.publishing import note_made, withdraw
from penstock.compressions.schemas import EvaluateRequest, QuantizeRequest
from penstock.compressions.versions import FiledVersion
from penstock.db import Database
from penstock.errors import LeaseLost, PenstockError
from penstock.files.storage import FileStorage
from penstock.jobs import lease
from penstock.jobs.journal import Journal
from penstock.jobs.lease import Claim, Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.logs import get_logger
from penstock.settings import Settings
from penstock.usage.spent import Spent
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock_worker.file_run import LOOK_SECONDS, FileRun, Progress, ToolCrashed, ToolFailed
from penstock_worker.patience import DATABASE_OUTAGE, GaveUp, until_done
from penstock_worker.tool_process import TOOL

TOLD_EVERY_SECONDS: Final = 1.0
_UNMEASURED: Final = "energy is not measured of work on files"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """What an attempt works with. Once `closing` is set its job is handed back, once `impatient` is, nothing waits."""

    settings: Settings
    database: Database
    journal: Journal
    holder: str
    root: Path
    tool: str = TOOL
    closing: threading.Event = field(default_factory=threading.Event)
    impatient: threading.Event = field(default_factory=threading.Event)

    def announce(self, job_id: str) -> None:
        """Tell live readers of an event; without Redis they find it themselves."""
        try:
            self.journal.announce([job_id])
        except RedisError as error:
            log.warning("job.not_announced", job=job_id, error=type(error).__name__)


class Ended(Exception):
    """The job is to end without a result: cancelled, or late."""

    def __init__(self, state: JobState) -> None:
        super().__init__(state.value)
        self.state = state


class HandBack(Exception):
    """The job goes back to the queue."""


class Attempt:
    """One claimed job, held until its end is written down."""

    def __init__(self, doors: Doors, claim: Claim, row: Compression) -> None:
        self._doors, self._job, self._row = doors, claim.job, row
        self._made = row.made
        self._held = Held(claim.job.id, claim.fence)
        self._folder = MakingFolder(doors.root, claim.job.id)
        self._run = FileRun(claim.job, row, self._folder, self._gather, self._tend, self._tell, doors.tool)
        self._beat_seconds = min(1.0, doors.settings.lease_seconds / 3)
        self._alive_at = self._renewed_at = time.monotonic()
        self._told_at, self._stage_told = float("-inf"), ""
        self._offered = False  # what was made is a control process's to register

    def run(self) -> None:
        """Do the work and write down how it ended, whatever that was."""
        self._doors.announce(self._job.id)
        log.info("files.job_started", job=self._job.id, kind=self._job.kind, run=self._job.runs)
        try:
            self._finish(JobState.SUCCEEDED, output=self._work())
        except Ended as ended:
            self._finish(ended.state)
        except HandBack as reason:
            self._hand_back(RunOutcome.HANDED_BACK, str(reason))
        except ToolCrashed as crash:
            self._note_crash(str(crash))
        except LeaseLost:
            log.warning("lease.lost", job=self._job.id, fence=self._held.fence)
        except ToolFailed as failure:
            self._finish(JobState.FAILED, error={"code": failure.code_told, "message": failure.message})
        except PenstockError as failure:
            self._finish(JobState.FAILED, error={"code": failure.code, "message": failure.message})
        except DATABASE_OUTAGE as error:
            self._hand_back(RunOutcome.HANDED_BACK, f"PostgreSQL does not answer ({type(error).__name__})")
        except Exception as error:
            log.exception("files.job_failed", job=self._job.id)
            message = f"the worker could not do the job: {type(error).__name__}"
            self._finish(JobState.FAILED, error={"code": "internal_error", "message": message})

    def _work(self) -> dict[str, Any]:
        if self._made is None:
            self._made = self._run.make()
            with self._doors.database.transaction() as session:
                self._hold(session)
                note_made(session, self._job.id, self._made)
        return self._output(self._made, self._published())

    def _published(self) -> dict[str, Any]:
        """What became of it in MLflow; a control process does that. Raises PenstockError where MLflow refuses it."""
        self._offered = True
        self._tell(Progress("register", 0, 1, "waiting for the registry"))
        while True:
            with self._doors.database.transaction() as session:
                row = session.get_one(Compression, self._job.id)
            if row.problem is not None:
                raise ToolFailed(row.problem["code"], row.problem["message"])
            if row.published is not None:
                return row.published
            self._tend(True)
            self._doors.closing.wait(LOOK_SECONDS)

    def _output(self, made: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
        told = {name: made.get(name) for name in ("bytes", "source_bytes", "ratio", "recipe", "figures")}
        against = FiledVersion.from_row(self._row.against or self._row.model)
        return {"model": made["name"], "against": against.spelled, **published, **told}

    def _gather(self, request: QuantizeRequest | EvaluateRequest) -> Gathered:
        storage = FileStorage.of(self._doors.settings)
        with self._doors.database.transaction() as session:
            return Gatherer(session, storage, self._job.tenant_id, self._job.model_name).for_request(request)

    # While it goes on

    def _tend(self, alive: bool) -> None:
        """Keep the lease while there are signs of life, and raise what ends the work."""
        now = time.monotonic()
        if alive:
            self._alive_at = now
        if self._doors.closing.is_set():
            raise HandBack("the worker is stopping")
        if now - self._alive_at > self._doors.settings.engine_stall_seconds:
            raise ToolCrashed(f"the tool stood still for {self._doors.settings.engine_stall_seconds:g} s")
        if now - self._renewed_at >= self._beat_seconds:
            self._renew(now)

    def _renew(self, now: float) -> None:
        try:
            with self._doors.database.transaction() as session:
                renewed = lease.renew(
                    session,
                    worker_id=self._doors.holder,
                    held=[self._held],
                    lease_seconds=self._doors.settings.lease_seconds,
                ).get(self._job.id)
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="files.renew", error=type(error).__name__)
            if now - self._renewed_at > self._doors.settings.lease_seconds:
                raise LeaseLost(f"{self._job.id} could not be renewed") from error
            return
        if renewed is None:
            raise LeaseLost(f"{self._job.id} is no longer held with fence {self._held.fence}")
        self._renewed_at = now
        if (renewed.cancel_requested or renewed.deadline_passed) and (not self._offered or self._withdrawn()):
            raise Ended(JobState.CANCELLED if renewed.cancel_requested else JobState.EXPIRED)

    def _withdrawn(self) -> bool:
        """Whether what was made could be taken back: not once a control process is at it, or has been."""
        with self._doors.database.transaction() as session:
            return withdraw(session, self._job.id)

    def _tell(self, progress: Progress) -> None:
        """An event of it, about one a second; a stage's first and last one always."""
        now = time.monotonic()
        first, last = progress.stage != self._stage_told, progress.done == progress.of
        if now - self._told_at < TOLD_EVERY_SECONDS and not (first or last):
            return
        self._told_at, self._stage_told = now, progress.stage
        try:
            with self._doors.database.transaction() as session:
                lease.note_progress(session, self._held, asdict(progress))
        except DATABASE_OUTAGE as error:
            log.warning("database.unreachable", what="files.progress", error=type(error).__name__)
            return
        self._doors.announce(self._job.id)

    def _hold(self, session: Session) -> None:
        """Lock the job's row under its fence, so that nothing is written by one who has lost it."""
        held = select(Job.id).where(
            Job.id == self._held.job_id, Job.fence == self._held.fence, Job.state == JobState.RUNNING
        )
        if session.scalar(held.with_for_update()) is None:
            raise LeaseLost(f"{self._job.id} is no longer held with fence {self._held.fence}")

    # Its end

    def _finish(
        self,
        state: JobState,
        *,
        output: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        outcome: RunOutcome = RunOutcome.FINISHED,
    ) -> None:
        result = Finish(state, (), 0, error=error, output=output, outcome=outcome, spent=self._spent)

        def finish() -> None:
            with self._doors.database.transaction() as session:
                lease.finish(session, self._held, result)

        if self._written(finish):
            self._clean_up(state, output)
            log.info("job.finished", job=self._job.id, state=state.value, entries=0)

    def _hand_back(self, outcome: RunOutcome, reason: str) -> None:
        def hand_back() -> None:
            with self._doors.database.transaction() as session:
                most = self._doors.settings.max_own_crashes
                lease.hand_back(session, self._held, outcome, reason, max_own_crashes=most, spent=self._spent)

        if self._written(hand_back):
            log.warning("job.handed_back", job=self._job.id, outcome=outcome.value, reason=reason)

    def _note_crash(self, reason: str) -> None:
        crashes = self._job.own_crashes + 1
        if crashes < self._doors.settings.max_own_crashes:
            self._hand_back(RunOutcome.CRASHED_ALONE, reason)
            return
        message = f"the tool crashed {crashes} times: {reason}"
        error = {"code": "tool_crashed", "message": message}
        self._finish(JobState.FAILED, error=error, outcome=RunOutcome.CRASHED_ALONE)

    def _written(self, write: Callable[[], None]) -> bool:
        try:
            until_done(write, stop=self._doors.impatient, what="files.result")
        except LeaseLost:
            log.warning("lease.lost", job=self._job.id, fence=self._held.fence)
            return False
        except GaveUp:
            log.error("results.gave_up", job=self._job.id, fence=self._held.fence)
            return False
        self._doors.announce(self._job.id)
        return True

    def _clean_up(self, state: JobState, output: dict[str, Any] | None) -> None:
        """Leave the registered version alone: of files that were registered before, and of what failed, nothing."""
        self._folder.remove()
        kept = self._made["folder"] if self._made is not None else None
        if kept is not None and (state is not JobState.SUCCEEDED or (output or {})["source"] != kept):
            shutil.rmtree(kept, ignore_errors=True)

    @property
    def _spent(self) -> Spent:
        return Spent(device_seconds=self._run.tool_seconds, energy_note=_UNMEASURED)
