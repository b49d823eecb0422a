"""Expansion: lines become jobs as there is room for them, a chunk a transaction, each line's job with the line itself.

So a crash between making a job and noting it cannot be: both are one commit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of, refuse_suspended
from penstock.batches.lines import LineRefused, Wish, read_line
from penstock.batches.models import Batch, BatchLine
from penstock.batches.settling import Refusal, open_lines, settle_refused, settle_untried
from penstock.batches.states import PAUSED, BatchState, LineState
from penstock.batches.structure import compile_ahead
from penstock.batches.turns import Turn, hold
from penstock.batches.validation import fault_of_key
from penstock.batches.workshop import Workshop
from penstock.errors import BudgetExceeded, PenstockError, QuotaExceeded, RequestError, TenantSuspended
from penstock.files.models import File
from penstock.jobs import services as jobs
from penstock.jobs.locks import lock_budgets, lock_queue
from penstock.jobs.schemas import JobRequest
from penstock.logs import get_logger

_READ_AT_ONCE: Final = 50
_SUBMITTED_AT_ONCE: Final = 10  # a submit may lock its tenant's counter until the transaction ends
_BYTES_AT_ONCE: Final = 4 * 2**20
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A line without a job, and what it asks for, or why that cannot be had."""

    line: BatchLine
    wish: Wish | Refusal


def expand_some(workshop: Workshop, turn: Turn, batch: Batch) -> bool:
    """Make jobs of the next lines, as far as there is room; whether there may be more to do at once."""
    with workshop.database.transaction() as session:
        room = workshop.settings.batch_waiting_jobs - open_lines(session, batch.id).waiting
        lines = _next_lines(session, batch, min(room, _READ_AT_ONCE))
    if not lines:
        return False
    try:
        ready = [_Ready(line, _wish(workshop, batch, line, data)) for line, data in _contents(workshop, batch, lines)]
    except FileNotFoundError:
        return _give_up(workshop, turn)
    compile_ahead(workshop, [one.wish.request for one in ready if isinstance(one.wish, Wish)])
    return all(
        _submit_some(workshop, turn, ready[begin : begin + _SUBMITTED_AT_ONCE])
        for begin in range(0, len(ready), _SUBMITTED_AT_ONCE)
    )


def _next_lines(session: Session, batch: Batch, most: int) -> list[BatchLine]:
    if most <= 0:
        return []
    ready = select(BatchLine).where(BatchLine.batch_id == batch.id, BatchLine.state == LineState.READY)
    chosen: list[BatchLine] = []
    size = 0
    for line in session.scalars(ready.order_by(BatchLine.line).limit(most)):
        size += line.length
        if chosen and size > _BYTES_AT_ONCE:
            break
        chosen.append(line)
    return chosen


def _contents(workshop: Workshop, batch: Batch, lines: Sequence[BatchLine]) -> Iterator[tuple[BatchLine, bytes]]:
    """Each line with its text; lines that lie side by side are read at once."""
    key = File.key_of(batch.tenant_id, batch.input_file_id)
    for run in _runs(lines):
        first, last = run[0], run[-1]
        text = workshop.storage.read(key, first.start, last.start + last.length - first.start)
        for line in run:
            begin = line.start - first.start
            yield line, text[begin : begin + line.length].rstrip(b"\r\n")


def _runs(lines: Sequence[BatchLine]) -> list[list[BatchLine]]:
    runs = [[lines[0]]]
    for before, line in pairwise(lines):
        if before.start + before.length == line.start:
            runs[-1].append(line)
        else:
            runs.append([line])
    return runs


def _wish(workshop: Workshop, batch: Batch, line: BatchLine, data: bytes) -> Wish | Refusal:
    settings = workshop.settings
    try:
        wish = read_line(
            data,
            endpoint=batch.endpoint,
            longest=settings.max_body_bytes,
            allow_loopback=settings.webhook_allow_loopback,
        )
        fault = fault_of_key(batch, wish.request.model)  # who tries lines again may have another key
    except LineRefused as refused:  # the settings have changed since it was judged
        fault = refused.faults[0]
    return wish if fault is None else Refusal(line.line, {"code": fault.code, "message": fault.message})


def _submit_some(workshop: Workshop, turn: Turn, ready: Sequence[_Ready]) -> bool:
    """Submit these lines in one transaction, up to the first that has to wait; whether none had to."""
    with workshop.database.transaction() as session:
        batch = hold(session, turn)
        if batch.status == PAUSED or batch.state != BatchState.IN_PROGRESS:
            return False
        lock_queue(session, batch.tenant_id)
        lock_budgets(session, [batch.tenant_id])
        batch.blocker, refused = _submit_each(workshop, session, batch, ready)
        settle_refused(session, batch, refused)
        return batch.blocker is None


def _submit_each(
    workshop: Workshop, session: Session, batch: Batch, ready: Sequence[_Ready]
) -> tuple[dict[str, str] | None, list[Refusal]]:
    """Why the first line that has to wait does so, and the lines before it that were refused."""
    tenant = session.get_one(Tenant, batch.tenant_id)
    try:
        refuse_suspended(tenant)
    except TenantSuspended as error:
        return _told(error), []
    limits = workshop.quotas.job_limits(batch.tenant_id, limits_of(tenant))
    refused: list[Refusal] = []
    for one in ready:
        if isinstance(one.wish, Refusal):
            refused.append(one.wish)
            continue
        try:
            _submit(workshop, session, batch, one.line, one.wish, limits)
        except PenstockError as error:
            if _passes(session, batch, error):
                log.warning("batch.waits", batch=batch.id, code=error.code)
                return _told(error), refused
            refused.append(Refusal(one.line.line, _told(error)))
    return None, refused


def _told(error: PenstockError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _passes(session: Session, batch: Batch, error: PenstockError) -> bool:
    """Whether the line may yet become a job; of a budget, what the batch's open lines do not cost comes free again."""
    if isinstance(error, BudgetExceeded):
        return open_lines(session, batch.id).total > 0
    return isinstance(error, QuotaExceeded) or not isinstance(error, RequestError)


def _submit(
    workshop: Workshop, session: Session, batch: Batch, line: BatchLine, wish: Wish, limits: jobs.Limits
) -> None:
    with session.begin_nested():
        job = jobs.submit(
            session,
            tenant_id=batch.tenant_id,
            request=_as_of(batch, wish.request),
            prompts=workshop.prompts,
            limits=limits,
            place=jobs.Place(batch.id, line.line),
            api_key_id=batch.api_key_id,
        )
        session.execute(
            update(BatchLine)
            .where(BatchLine.batch_id == batch.id, BatchLine.line == line.line, BatchLine.state == LineState.READY)
            .values(state=LineState.OPEN, job_id=job.id)
        )


def _as_of(batch: Batch, request: JobRequest) -> JobRequest:
    """The line's request with the batch's priority, and its end where that comes first."""
    deadline = min(request.deadline or batch.expires_at, batch.expires_at)
    return request.model_copy(update={"priority": batch.priority, "deadline": deadline})


def _give_up(workshop: Workshop, turn: Turn) -> bool:
    """Without its input nothing more can be made of the batch."""
    with workshop.database.transaction() as session:
        batch = hold(session, turn)
        log.error("batch.input_gone", batch=batch.id, file=batch.input_file_id)
        return settle_untried(session, batch, LineState.FAILED) > 0
