"""How far a batch is, exactly and cheaply, and when it will be through at the rate that was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from penstock.batches.models import Batch
from penstock.batches.settling import OpenLines, open_lines_of
from penstock.batches.states import PAUSED, BatchState

_RATED: Final = 500
_LEAST_RATED: Final = 5
_RECENT: Final = text(
    """
    SELECT asked.id, recent.lines, recent.first, clock_timestamp()
    FROM unnest(CAST(:ids AS text[]), CAST(:behind AS integer[]), CAST(:since AS timestamptz[]))
           AS asked (id, behind, since)
    CROSS JOIN LATERAL (
        SELECT count(*) AS lines, min(settled_at) AS first FROM batch_line
        WHERE batch_id = asked.id AND position > asked.behind AND settled_at > asked.since
    ) AS recent
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """A batch's lines by what came of them, the measured rate in lines a second, and the moment when all are done."""

    counts: dict[str, int]
    rate: float | None
    eta: datetime | None


def progress_of(session: Session, batch: Batch) -> Progress:
    """How far one batch is."""
    return progresses_of(session, [batch])[0]


def progresses_of(session: Session, batches: Sequence[Batch]) -> list[Progress]:
    """What is settled as each batch's row counts it, and its open lines, of which there are few, as they stand now.

    In the batches' order, by as many statements for many as for one.
    """
    going = [batch for batch in batches if not BatchState(batch.state).final]
    unsettled = open_lines_of(session, [batch.id for batch in going]) if going else {}
    rates = _rates(session, going) if going else {}
    return [
        _progress(batch, unsettled[batch.id], *rates[batch.id])
        if batch.id in rates
        else Progress(_counts(batch, OpenLines()), None, None)
        for batch in batches
    ]


def _progress(batch: Batch, unsettled: OpenLines, rate: float | None, now: datetime) -> Progress:
    counts = _counts(batch, unsettled)
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


def _rates(session: Session, batches: Sequence[Batch]) -> dict[str, tuple[float | None, datetime]]:
    """By batch, lines a second over the last 500 settled since it began, or was resumed; none before five. And now.

    It falls while nothing is settled, because its time ends now and not with the last line.
    """
    since = {batch.id: batch.resumed_at or batch.in_progress_at or batch.created_at for batch in batches}
    behind = [batch.settled - _RATED for batch in batches]
    found = session.execute(_RECENT, {"ids": list(since), "behind": behind, "since": list(since.values())})
    return {batch_id: (_rate(count, first, since[batch_id], now), now) for batch_id, count, first, now in found}


def _rate(count: int, first: datetime, since: datetime, now: datetime) -> float | None:
    seconds = (now - (since if count < _RATED else first)).total_seconds()
    return count / seconds if count >= _LEAST_RATED and seconds > 0 else None
