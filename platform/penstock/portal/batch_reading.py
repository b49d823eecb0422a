"""A batch's lines as its page shows them, in the order of the input, a page at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from penstock.batches.models import Batch, BatchLine
from penstock.batches.states import LineState
from penstock.jobs.models import Job

LINES_A_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its job, where it has one that was not deleted."""

    line: BatchLine
    job: Job | None


@dataclass(frozen=True, slots=True)
class LinePage:
    """Lines, and the number behind which the next ones come, if there are any."""

    lines: Sequence[Line]
    next: int | None


def line_page(session: Session, batch: Batch, state: LineState | None, *, after: int) -> LinePage:
    """The lines behind number `after`, all or those of one state."""
    query = select(BatchLine, Job).outerjoin(Job, Job.id == BatchLine.job_id)
    query = query.where(BatchLine.batch_id == batch.id, BatchLine.line > after)
    if state is not None:
        query = query.where(BatchLine.state == state)
    found = session.execute(query.order_by(BatchLine.line).limit(LINES_A_PAGE + 1)).all()
    lines = [Line(line, job) for line, job in found[:LINES_A_PAGE]]
    return LinePage(lines, lines[-1].line.line if len(found) > LINES_A_PAGE else None)
