"""Expansion: lines become jobs as there is room for them, a chunk a transaction, each line's job with the line itself.

So a crash between making a job and noting it cannot be: both are one commit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.auth.services import limits_of, refuse_suspended
from penstock.batches.lines import Fault, LineRefused, read_line
from penstock.batches.models import Batch, BatchLine
from penstock.batches.preparing import prepare
from penstock.batches.settling import Refusal, open_lines, settle_refused, settle_untried
from penstock.batches.states import PAUSED, BatchState, LineState
from penstock.batches.turns import Turn, hold
from penstock.batches.validation import fault_of_key
from penstock.batches.workshop import Workshop
from penstock.errors import BudgetExceeded, PenstockError, QuotaExceeded, RequestError, TenantSuspended
from penstock.files.models import File
from penstock.jobs import services as jobs
from penstock.jobs.intake import Asked
from penstock.jobs.locks import lock_budgets, lock_queue
from penstock.jobs.models import Job
from penstock.logs import get_logger

_READ_AT_ONCE: Final = 50
_BYTES_AT_ONCE: Final = 4 * 2**20
_OPEN: Final = text(
    f"""
    UPDATE batch_line SET state = '{LineState.OPEN}', job_id = made.id
    FROM unnest(CAST(:lines AS integer[]), CAST(:jobs AS text[])) AS made (line, id)
    WHERE batch_id = :batch AND batch_line.line = made.line AND state = '{LineState.READY}'
    """  # noqa: S608  # made of constants alone
)
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A line without a job, and what it asks for, or why that cannot be had."""

    line: BatchLine
    asked: Asked | Refusal


def expand_some(workshop: Workshop, turn: Turn, batch: Batch) -> bool:
    """Make jobs of the next lines, as far as there is room; whether there may be more to do at once."""
    with workshop.database.transaction() as session:
        room = workshop.settings.batch_waiting_jobs - open_lines(session, batch.id).waiting
        lines = _next_lines(session, batch, min(room, _READ_AT_ONCE))
    if not lines:
        return False
    try:
        ready = [_Ready(line, _asked(workshop, batch, line, data)) for line, data in _contents(workshop, batch, lines)]
    except FileNotFoundError:
        return _give_up(workshop, turn)
    prepare(workshop, [one.asked for one in ready if isinstance(one.asked, Asked)])
    return _submit_some(workshop, turn, ready)


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


def _asked(workshop: Workshop, batch: Batch, line: BatchLine, data: bytes) -> Asked | Refusal:
    settings = workshop.settings
    try:
        wish = read_line(
            data,
            endpoint=batch.endpoint,
            longest=settings.max_body_bytes,
            allow_loopback=settings.webhook_allow_loopback,
        )
    except LineRefused as refused:  # the settings have changed since it was judged
        return _refusal(line, refused.faults[0])
    fault = fault_of_key(batch, wish.request.model)  # who tries lines again may have another key
    return Asked.of(wish.request) if fault is None else _refusal(line, fault)


def _refusal(line: BatchLine, fault: Fault) -> Refusal:
    return Refusal(line.line, {"code": fault.code, "message": fault.message})


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
    intake = jobs.Intake(session, batch.tenant_id, prompts=workshop.prompts, limits=limits)
    refused: list[Refusal] = []
    opened: list[int] = []
    blocker: dict[str, str] | None = None
    for one in ready:
        if isinstance(one.asked, Refusal):
            refused.append(one.asked)
            continue
        try:
            intake.admit(_as_of(batch, one.asked), _origin(batch, one.line))
            opened.append(one.line.line)
        except PenstockError as error:
            if _passes(session, batch, error, len(opened)):
                log.warning("batch.waits", batch=batch.id, code=error.code)
                blocker = _told(error)
                break
            refused.append(Refusal(one.line.line, _told(error)))
    _open(session, batch, opened, intake.write())
    return blocker, refused


def _told(error: PenstockError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _passes(session: Session, batch: Batch, error: PenstockError, opened: int) -> bool:
    """Whether the line may yet become a job; of a budget, what the batch's open lines do not cost comes free again.

    So many more are being opened.
    """
    if isinstance(error, BudgetExceeded):
        return opened > 0 or open_lines(session, batch.id).total > 0
    return isinstance(error, QuotaExceeded) or not isinstance(error, RequestError)


def _origin(batch: Batch, line: BatchLine) -> jobs.Origin:
    return jobs.Origin(api_key_id=batch.api_key_id, place=jobs.Place(batch.id, line.line))


def _open(session: Session, batch: Batch, lines: Sequence[int], made: Sequence[Job]) -> None:
    """Note which job serves which line. Nobody else is at these rows: whoever is holds the batch."""
    if lines:
        session.execute(_OPEN, {"batch": batch.id, "lines": list(lines), "jobs": [job.id for job in made]})


def _as_of(batch: Batch, asked: Asked) -> Asked:
    """What the line asks for with the batch's priority, and its end where that comes first."""
    deadline = min(asked.request.deadline or batch.expires_at, batch.expires_at)
    request = asked.request.model_copy(update={"priority": batch.priority, "deadline": deadline})
    return replace(asked, request=request)


def _give_up(workshop: Workshop, turn: Turn) -> bool:
    """Without its input nothing more can be made of the batch."""
    with workshop.database.transaction() as session:
        batch = hold(session, turn)
        log.error("batch.input_gone", batch=batch.id, file=batch.input_file_id)
        return settle_untried(session, batch, LineState.FAILED) > 0
