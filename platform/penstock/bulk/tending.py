"""One thread in every control process: works off bulk operations, a short transaction at a time.

Nobody leads. Who works at an operation holds its row, and others pass it over; what happens to items, jobs and counts
is one transaction, so a crash leaves a step undone as a whole and whoever comes next takes it again.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from redis.exceptions import RedisError
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.batches.workshop import Workshop
from penstock.bulk.models import BulkItem, BulkOperation
from penstock.bulk.states import UNFINISHED, BulkAction, BulkState, ItemState
from penstock.bulk.telling import BulkEvent, tell
from penstock.bulk.work import Work
from penstock.db import DATABASE_AWAY
from penstock.errors import (
    DeadLetterSettled,
    JobAlreadyFinished,
    JobNotFinished,
    NotFound,
    PenstockError,
    QuotaExceeded,
    RequestError,
)
from penstock.logs import get_logger

MOST_TARGETS: Final = 100_000
_GATHERED_AT_ONCE: Final = 1000
_PAUSE_SECONDS: Final = 0.5
OUTAGES: Final = (*DATABASE_AWAY, RedisError, OSError)
_NEEDLESS: Final = (DeadLetterSettled, JobAlreadyFinished, JobNotFinished, NotFound)
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target."""

    target: str
    state: ItemState
    result: str | None = None
    error: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction did: live readers are told of the jobs. `again_in` is when the operation is due next."""

    operation_id: str
    jobs: Sequence[str]
    again_in: float


class BulkTender:
    """Works at all operations that are due, those first that have waited longest."""

    def __init__(self, workshop: Workshop, works: Mapping[BulkAction, Work]) -> None:
        self._workshop, self._works = workshop, works
        self._pause = min(workshop.settings.sweep_seconds, 1.0)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; outages are waited out."""
        while not stop.is_set():
            try:
                while self.work_once() and not stop.is_set():
                    pass
            except OUTAGES as error:
                log.warning("bulk.tending_interrupted", error=type(error).__name__)
            stop.wait(self._pause)

    def work_once(self) -> bool:
        """Take one step of the operation that waited longest; False when none is due."""
        operation_id = ""
        try:
            with self._workshop.database.transaction() as session:
                operation = _take(session)
                if operation is None:
                    return False
                operation_id = operation.id
                step = self._step(session, operation)
        except OUTAGES:
            raise
        except Exception as error:  # one operation that cannot be worked at does not hold up the others
            log.exception("bulk.step_failed", operation=operation_id, error=type(error).__name__)
            self._put_off(operation_id)
            return True
        if step.jobs:
            self._announce(step.jobs)
        return True

    def _step(self, session: Session, operation: BulkOperation) -> Step:
        work = self._works[BulkAction(operation.action)]
        if operation.state == BulkState.GATHERING:
            step = _gather(session, operation, work)
        else:
            step = self._act(session, operation, work)
        operation.due_at = session.scalars(select(func.clock_timestamp() + timedelta(seconds=step.again_in))).one()
        return step

    def _act(self, session: Session, operation: BulkOperation, work: Work) -> Step:
        ready = select(BulkItem.target_id).where(
            BulkItem.operation_id == operation.id, BulkItem.state == ItemState.READY
        )
        targets = session.scalars(ready.order_by(BulkItem.target_id).limit(work.at_once)).all()
        if not targets:
            _complete(session, operation)
            return Step(operation.id, (), 0.0)
        reached = work.reach(session, operation, targets)
        outcomes, again_in = self._outcomes(session, operation, work, reached)
        _settle(session, operation, outcomes)
        changed = [outcome.result for outcome in outcomes if outcome.result is not None]
        return Step(operation.id, changed, again_in if outcomes else max(again_in, _PAUSE_SECONDS))

    def _outcomes(
        self, session: Session, operation: BulkOperation, work: Work, targets: Sequence[str]
    ) -> tuple[list[Outcome], float]:
        """What came of the targets up to the first for which the operation has to wait, and for how many seconds."""
        operation.blocker, outcomes = None, []
        for target in targets:
            try:
                result = work.act(self._workshop, session, operation, target)
                outcomes.append(Outcome(target, ItemState.DONE, result))
            except PenstockError as error:
                told = {"code": error.code, "message": error.message}
                if isinstance(error, QuotaExceeded) or not isinstance(error, RequestError):
                    operation.blocker = told
                    return outcomes, float(error.extra.get("retry_after", 1))
                state = ItemState.SKIPPED if isinstance(error, _NEEDLESS) else ItemState.FAILED
                outcomes.append(Outcome(target, state, None, told))
        return outcomes, 0.0

    def _put_off(self, operation_id: str) -> None:
        with self._workshop.database.transaction() as session:
            later = func.clock_timestamp() + timedelta(seconds=5)
            session.execute(update(BulkOperation).where(BulkOperation.id == operation_id).values(due_at=later))

    def _announce(self, job_ids: Sequence[str]) -> None:
        try:
            self._workshop.journal.announce(list(job_ids))
        except RedisError as error:  # live readers find it themselves, within seconds
            log.warning("job.not_announced", error=type(error).__name__)


def _take(session: Session) -> BulkOperation | None:
    due = select(BulkOperation).where(
        BulkOperation.state.in_(UNFINISHED),
        BulkOperation.due_at <= func.clock_timestamp(),
        BulkOperation.tenant_id.in_(select(Tenant.id).where(Tenant.suspended_at.is_(None))),
    )
    return session.scalars(due.order_by(BulkOperation.due_at).limit(1).with_for_update(skip_locked=True)).one_or_none()


def _gather(session: Session, operation: BulkOperation, work: Work) -> Step:
    """List the next targets; when all are listed, or as many as one operation takes, the work begins."""
    room = MOST_TARGETS - operation.total
    found = list(work.gather(session, operation, min(_GATHERED_AT_ONCE, room) + 1))
    more, targets = len(found) > min(_GATHERED_AT_ONCE, room), found[: min(_GATHERED_AT_ONCE, room)]
    if targets:
        session.execute(insert(BulkItem), [{"operation_id": operation.id, "target_id": id_} for id_ in targets])
        operation.gathered_to = targets[-1]
        operation.total += len(targets)
    operation.truncated = more and operation.total >= MOST_TARGETS
    if not more or operation.truncated:
        operation.state = BulkState.RUNNING
        tell(session, operation, BulkEvent.RUNNING)
    return Step(operation.id, (), 0.0)


def _settle(session: Session, operation: BulkOperation, outcomes: Sequence[Outcome]) -> None:
    """Note what came of targets: in their rows, and in the operation's counts."""
    if not outcomes:
        return
    statement: Any = (
        update(BulkItem.__table__)  # type: ignore[arg-type]  # a core update: one statement for many rows
        .where(BulkItem.operation_id == operation.id, BulkItem.target_id == bindparam("of"))
        .values(state=bindparam("now"), result_id=bindparam("result"), error=bindparam("why"))
    )
    rows = [{"of": one.target, "now": one.state.value, "result": one.result, "why": one.error} for one in outcomes]
    session.connection().execute(statement, rows)
    states = [outcome.state for outcome in outcomes]
    operation.done += states.count(ItemState.DONE)
    operation.skipped += states.count(ItemState.SKIPPED)
    operation.failed += states.count(ItemState.FAILED)


def _complete(session: Session, operation: BulkOperation) -> None:
    now = session.scalars(select(func.clock_timestamp())).one()
    operation.state, operation.finished_at = BulkState.COMPLETED, now
    tell(session, operation, BulkEvent.COMPLETED)
