"""One thread in every control process: gives batches turns, and sweeps files that are to go.

Any number of them may run side by side; `turns` keeps them apart.
"""

import threading
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from penstock.batches.expansion import expand_some
from penstock.batches.finishing import finish
from penstock.batches.models import Batch, BatchLine
from penstock.batches.services import hold_waiting
from penstock.batches.settling import open_lines, settle_finished, settle_untried
from penstock.batches.states import PAUSED, BatchState, LineState
from penstock.batches.telling import BatchEvent, tell
from penstock.batches.turns import Turn, TurnLost, give_back, hold, take
from penstock.batches.validation import validate_some
from penstock.batches.workshop import Workshop
from penstock.errors import JobAlreadyFinished, PenstockError
from penstock.files.writing import sweep
from penstock.jobs import services as jobs
from penstock.jobs.locks import lock_budgets
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.logs import get_logger

_CANCELLED_AT_ONCE: Final = 50
_AFTER_FAILURE_SECONDS: Final = 5.0
_FILES_SWEPT_EVERY: Final = 30  # rounds
log = get_logger(__name__)


class BatchTender:
    """Works at all batches that are due, one after the other, a step each."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._pause = workshop.settings.sweep_seconds

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; outages are waited out."""
        rounds = 0
        while not stop.is_set():
            try:
                if rounds % _FILES_SWEPT_EVERY == 0:
                    sweep(self._workshop.database, self._workshop.storage)
                while self.work_once() and not stop.is_set():
                    pass
            except (DBAPIError, PoolTimeout, RedisError, PenstockError, OSError) as error:
                log.warning("batch.tending_interrupted", error=type(error).__name__)
            rounds += 1
            stop.wait(min(self._pause, 1.0))

    def work_once(self) -> bool:
        """Give the batch that waited longest its turn; False when none is due."""
        with self._workshop.database.transaction() as session:
            turn = take(session)
        if turn is None:
            return False
        with suppress(TurnLost):
            again_in = self._take_turn(turn)
            with self._workshop.database.transaction() as session:
                give_back(session, turn, again_in=again_in)
        return True

    def _take_turn(self, turn: Turn) -> float:
        """Take one step; the seconds until the next. One batch that cannot be worked at does not hold up the others."""
        try:
            return 0.0 if self.step(turn) else self._pause
        except TurnLost:
            raise
        except (DBAPIError, RedisError, PenstockError, OSError) as error:
            log.warning("batch.turn_interrupted", batch=turn.batch_id, error=type(error).__name__)
        except Exception as error:
            log.exception("batch.turn_failed", batch=turn.batch_id, error=type(error).__name__)
        return _AFTER_FAILURE_SECONDS

    def step(self, turn: Turn) -> bool:
        """Bring the batch one step further; whether there may be more to do at once."""
        with self._workshop.database.transaction() as session:
            batch = hold(session, turn)
            settled = settle_finished(session, batch)
            expired = _end_in_time(session, batch)
        if expired:
            return True
        match BatchState(batch.state):
            case BatchState.VALIDATING:
                validate_some(self._workshop, turn, batch)
                return True
            case BatchState.IN_PROGRESS:
                return self._progress(turn, batch) or settled > 0
            case BatchState.CANCELLING:
                return self._close(turn, batch, LineState.CANCELLED)
            case BatchState.FINALIZING:
                return self._close(turn, batch, LineState.EXPIRED)
        return False

    def _progress(self, turn: Turn, batch: Batch) -> bool:
        if batch.settled == batch.total_lines:
            with self._workshop.database.transaction() as session:
                _finalize(session, hold(session, turn), BatchState.COMPLETED)
            return True
        if batch.status == PAUSED:
            with self._workshop.database.transaction() as session:
                _keep_held(session, hold(session, turn))
            return False
        return expand_some(self._workshop, turn, batch)

    def _close(self, turn: Turn, batch: Batch, untried: LineState) -> bool:
        """End what is open, settle what was never tried, and then write the files."""
        with self._workshop.database.transaction() as session:
            held = hold(session, turn)
            if settle_untried(session, held, untried):
                return True
            stopped = _stop_open(session, held)
            unsettled = open_lines(session, held.id).total
        self._workshop.journal.announce(stopped)
        if unsettled == 0:
            finish(self._workshop, turn, batch)
        return len(stopped) == _CANCELLED_AT_ONCE


def _end_in_time(session: Session, batch: Batch) -> bool:
    """Begin the end of a batch whose time is over."""
    if batch.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
        return False
    now = session.scalar(select(func.clock_timestamp()))
    if now is None or now < batch.expires_at or (batch.total_lines and batch.settled == batch.total_lines):
        return False
    _finalize(session, batch, BatchState.EXPIRED)
    return True


def _finalize(session: Session, batch: Batch, end: BatchState) -> None:
    if batch.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
        return
    batch.state, batch.ends_as = BatchState.FINALIZING, end
    batch.finalizing_at = session.scalar(select(func.clock_timestamp()))
    tell(session, batch, BatchEvent.FINALIZING)


def _keep_held(session: Session, batch: Batch) -> None:
    """Hold what came back to the queue since the pause began."""
    if batch.status == PAUSED:
        hold_waiting(session, batch, held=True)


def _stop_open(session: Session, batch: Batch) -> list[str]:
    """Cancel jobs of open lines, a few at a time; jobs of an expired batch end by their own deadline, which is its."""
    if batch.state != BatchState.CANCELLING:
        return []
    chosen = session.scalars(
        select(Job.id)
        .join(BatchLine, BatchLine.job_id == Job.id)
        .where(
            BatchLine.batch_id == batch.id,
            BatchLine.state == LineState.OPEN,
            Job.state.in_((JobState.QUEUED, JobState.RUNNING)),
            Job.cancel_requested_at.is_(None),
        )
        .order_by(Job.id)
        .limit(_CANCELLED_AT_ONCE)
        .with_for_update(of=Job, skip_locked=True)  # all before the first budget: who ends one locks in that order too
    ).all()
    lock_budgets(session, [batch.tenant_id] if chosen else [])
    for job_id in chosen:
        with suppress(JobAlreadyFinished):
            jobs.cancel(session, batch.tenant_id, job_id)
    return list(chosen)
