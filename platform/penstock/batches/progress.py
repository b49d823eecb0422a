"""How far a batch is, exactly and cheaply, and when it will be through at the rate that was measured."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.batches.models import Batch, BatchLine
from penstock.batches.settling import OpenLines, open_lines
from penstock.batches.states import PAUSED, BatchState

_RATED: Final = 500
_LEAST_RATED: Final = 5
_NONE_OPEN: Final = OpenLines(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch's lines by what came of them, the measured rate in lines a second, and the moment when all are done."""

    counts: dict[str, int]
    rate: float | None
    eta: datetime | None


def progress_of(session: Session, batch: Batch) -> Progress:
    """What is settled as the batch's row counts it, and the open lines, of which there are few, as they stand now."""
    if BatchState(batch.state).final:
        return Progress(_counts(batch, _NONE_OPEN), None, None)
    counts = _counts(batch, open_lines(session, batch.id))
    rate, now = _rate(session, batch)
    known = rate is not None and batch.status not in (PAUSED, BatchState.VALIDATING)
    left = counts["unsubmitted"] + counts["waiting"] + counts["running"]
    eta = now + timedelta(seconds=left / rate) if known and rate else None
    return Progress(counts, rate, eta)


def _counts(batch: Batch, unsettled: OpenLines) -> dict[str, int]:
    return {
        "total": batch.total_lines,
        "unsubmitted": batch.total_lines - batch.settled - unsettled.total,
        "waiting": unsettled.waiting,
        "running": unsettled.running,
        "succeeded": batch.succeeded_lines + unsettled.succeeded,
        "failed": batch.failed_lines + unsettled.failed,
        "cancelled": batch.cancelled_lines + unsettled.cancelled,
        "expired": batch.expired_lines + unsettled.expired,
        "invalid": batch.invalid_lines_found,
    }


def _rate(session: Session, batch: Batch) -> tuple[float | None, datetime]:
    """Over the last 500 settled lines since it began, or was resumed; none before five.

    It falls while nothing is settled, because its time ends now and not with the last line.
    """
    since: Any = batch.resumed_at or batch.in_progress_at or batch.created_at
    recent = (
        select(BatchLine.settled_at)
        .where(BatchLine.batch_id == batch.id, BatchLine.position > batch.settled - _RATED)
        .where(BatchLine.settled_at > since)
        .subquery()
    )
    count, first, now = session.execute(
        select(func.count(), func.min(recent.c.settled_at), func.clock_timestamp()).select_from(recent)
    ).one()
    began = since if count < _RATED else first
    seconds = (now - began).total_seconds()
    return (count / seconds if count >= _LEAST_RATED and seconds > 0 else None), now
