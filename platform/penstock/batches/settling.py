"""Settling lines: each gets its place in the order of finishing, and the batch's counts follow in the same transaction.

The counts change here alone, so they are exact without counting anything again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import bindparam, func, insert, text, update
from sqlalchemy.orm import Session

from penstock.batches.models import Batch, BatchLine
from penstock.batches.states import LineState

_SETTLED_AT_ONCE: Final = 1000
_SETTLE_FINISHED: Final = text(
    """
    WITH done AS MATERIALIZED (
        SELECT line.line, job.state, job.prompt_tokens, job.cached_tokens, job.output_tokens, job.finished_at,
               row_number() OVER (ORDER BY job.finished_at, line.line) AS place
        FROM batch_line AS line JOIN job ON job.id = line.job_id
        WHERE line.batch_id = :batch_id AND line.state = 'open'
          AND job.state IN ('succeeded', 'failed', 'cancelled', 'expired')
        ORDER BY job.finished_at, line.line LIMIT :limit
    )
    UPDATE batch_line
    SET state = done.state, position = :settled + done.place, settled_at = clock_timestamp()
    FROM done WHERE batch_line.batch_id = :batch_id AND batch_line.line = done.line
    RETURNING done.state, done.prompt_tokens, done.cached_tokens, done.output_tokens
    """
)
_SETTLE_UNTRIED: Final = text(
    """
    WITH left_over AS MATERIALIZED (
        SELECT line, row_number() OVER (ORDER BY line) AS place
        FROM batch_line WHERE batch_id = :batch_id AND state = 'ready' ORDER BY line LIMIT :limit
    )
    UPDATE batch_line
    SET state = :state, position = :settled + left_over.place, settled_at = clock_timestamp()
    FROM left_over WHERE batch_line.batch_id = :batch_id AND batch_line.line = left_over.line
    """
)
_STANDING: Final = text(
    """
    SELECT line.batch_id,
           count(*) FILTER (WHERE job.state = 'queued'), count(*) FILTER (WHERE job.state = 'running'),
           count(*) FILTER (WHERE job.state = 'succeeded'), count(*) FILTER (WHERE job.state = 'failed'),
           count(*) FILTER (WHERE job.state = 'cancelled'), count(*) FILTER (WHERE job.state = 'expired')
    FROM batch_line AS line JOIN job ON job.id = line.job_id
    WHERE line.batch_id = ANY(:batch_ids) AND line.state = 'open' GROUP BY line.batch_id
    """
)


@dataclass(frozen=True, slots=True)
class OpenLines:
    """How the jobs of a batch's open lines stand; those that have finished are about to be settled."""

    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.running + self.succeeded + self.failed + self.cancelled + self.expired


def open_lines(session: Session, batch_id: str) -> OpenLines:
    """As `open_lines_of` one batch."""
    return open_lines_of(session, [batch_id])[batch_id]


def open_lines_of(session: Session, batch_ids: Sequence[str]) -> dict[str, OpenLines]:
    """By batch, counted over the open lines, of which there are never more than may wait and run at once."""
    found = {batch_id: OpenLines() for batch_id in batch_ids}
    rows = session.execute(_STANDING, {"batch_ids": list(batch_ids)})
    return found | {row[0]: OpenLines(*row[1:]) for row in rows}


def settle_finished(session: Session, batch: Batch) -> int:
    """Settle up to 1,000 lines whose jobs have ended, in the order in which they did; how many it were."""
    asked = {"batch_id": batch.id, "settled": batch.settled, "limit": _SETTLED_AT_ONCE}
    rows = session.execute(_SETTLE_FINISHED, asked).all()
    for state, prompt_tokens, cached_tokens, output_tokens in rows:
        _count(batch, LineState(state))
        batch.prompt_tokens += prompt_tokens or 0
        batch.cached_tokens += cached_tokens
        batch.output_tokens += output_tokens
    return len(rows)


def settle_untried(session: Session, batch: Batch, state: LineState) -> int:
    """Settle up to 1,000 lines that never got a job; how many it were."""
    asked = {"batch_id": batch.id, "settled": batch.settled, "limit": _SETTLED_AT_ONCE, "state": state.value}
    count: int = session.execute(_SETTLE_UNTRIED, asked).rowcount  # type: ignore[attr-defined]  # of an UPDATE
    _count(batch, state, count)
    return count


@dataclass(frozen=True, slots=True)
class Refusal:
    """A ready line that no job can be made of."""

    line: int
    error: dict[str, Any]


def settle_refused(session: Session, batch: Batch, refused: Sequence[Refusal]) -> None:
    """Settle lines whose submit was refused: they have failed, without a job."""
    if not refused:
        return
    statement = (
        update(BatchLine.__table__)  # type: ignore[arg-type]  # a core update: one statement for many rows
        .where(BatchLine.batch_id == batch.id, BatchLine.line == bindparam("of_line"))
        .values(state=LineState.FAILED.value, position=bindparam("at"), error=bindparam("why"), settled_at=func.now())
    )
    session.connection().execute(
        statement,
        [
            {"of_line": one.line, "at": batch.settled + place, "why": one.error}
            for place, one in enumerate(refused, start=1)
        ],
    )
    _count(batch, LineState.FAILED, len(refused))


def add_invalid(session: Session, batch: Batch, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines that are settled from the first, because they are wrong."""
    if not lines:
        return
    session.execute(
        insert(BatchLine).values(settled_at=func.now()),
        [
            {**line, "batch_id": batch.id, "state": LineState.INVALID.value, "position": batch.settled + place}
            for place, line in enumerate(lines, start=1)
        ],
    )
    _count(batch, LineState.INVALID, len(lines))


def _count(batch: Batch, state: LineState, lines: int = 1) -> None:
    column = {
        LineState.SUCCEEDED: "succeeded_lines",
        LineState.FAILED: "failed_lines",
        LineState.CANCELLED: "cancelled_lines",
        LineState.EXPIRED: "expired_lines",
        LineState.INVALID: "invalid_lines_found",
    }[state]
    setattr(batch, column, getattr(batch, column) + lines)
    batch.settled += lines
