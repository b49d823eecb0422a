"""Validation: the input is read once, a chunk of lines a transaction; good lines are noted, wrong ones are told.

A crash repeats at most the chunk that was not committed, from where the last one ended.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from penstock.batches.lines import Fault, LineRefused, RawLine, Wish, read_line, split_lines
from penstock.batches.models import Batch, BatchLine
from penstock.batches.settling import add_invalid
from penstock.batches.states import BatchState
from penstock.batches.telling import BatchEvent, tell
from penstock.batches.turns import Turn, hold
from penstock.batches.workshop import Workshop
from penstock.errors import ModelNotFound, NotFound
from penstock.files import services as files
from penstock.routing.services import choose, model_name_of

MOST_ERRORS: Final = 1000
_LINES_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Judged:
    """A line with what it asks for, or with what is wrong."""

    raw: RawLine
    wish: Wish | None
    custom_id: str | None
    faults: Sequence[Fault]


def validate_some(workshop: Workshop, turn: Turn, batch: Batch) -> None:
    """Read the next lines of the input, up to 500 and 4 MiB; at its end the batch goes into progress, or has failed."""
    try:
        raw_lines = _read(workshop, batch)
    except (FileNotFoundError, NotFound):
        gone = Fault("input_file_gone", f"{batch.input_file_id} was deleted", "input_file_id")
        with workshop.database.transaction() as session:
            _fail(session, hold(session, turn), gone)
        return
    judged = [_judge(raw, batch, workshop) for raw in raw_lines]
    with workshop.database.transaction() as session:
        batch = hold(session, turn)
        if batch.state != BatchState.VALIDATING:
            return
        if raw_lines:
            _note(session, batch, _with_models(session, batch, _once_each(session, batch, judged)))
        too_many = batch.total_lines > workshop.settings.batch_max_lines
        if too_many:
            most = workshop.settings.batch_max_lines
            _fail(session, batch, Fault("too_many_lines", f"the file has more than {most} lines", "input_file_id"))
        elif not raw_lines:
            _conclude(session, batch)


def _read(workshop: Workshop, batch: Batch) -> list[RawLine]:
    with workshop.database.transaction() as session:
        key = files.get(session, batch.tenant_id, batch.input_file_id).key
    longest = workshop.settings.max_body_bytes
    chunk: list[RawLine] = []
    with closing(workshop.storage.open(key)) as file:
        lines = split_lines(file, start=batch.read_bytes, number=batch.read_lines + 1, longest=longest)
        for line in islice(lines, _LINES_AT_ONCE):
            chunk.append(line)
            if line.start + line.length - chunk[0].start >= _BYTES_AT_ONCE:
                break
    return chunk


def _judge(raw: RawLine, batch: Batch, workshop: Workshop) -> Judged:
    settings = workshop.settings
    try:
        wish = read_line(
            raw.data,
            endpoint=batch.endpoint,
            longest=settings.max_body_bytes,
            allow_loopback=settings.webhook_allow_loopback,
        )
    except LineRefused as refused:
        return Judged(raw, None, refused.custom_id, refused.faults)
    return Judged(raw, wish, wish.custom_id, ())


def _once_each(session: Session, batch: Batch, judged: Sequence[Judged]) -> list[Judged]:
    """The same, those refused whose custom id an earlier good line has."""
    wanted = [one.custom_id for one in judged if one.wish is not None]
    known = select(BatchLine.custom_id, BatchLine.line).where(
        BatchLine.batch_id == batch.id, BatchLine.custom_id.in_(wanted), BatchLine.state != "invalid"
    )
    first_at: dict[str | None, int] = dict(iter(session.execute(known)))
    told = []
    for one in judged:
        earlier = first_at.setdefault(one.custom_id, one.raw.number) if one.wish is not None else one.raw.number
        if earlier != one.raw.number:
            message = f"{one.custom_id!r} is line {earlier}'s already; each line needs one of its own"
            one = _refused(one, Fault("duplicate_custom_id", message, "custom_id"))  # noqa: PLW2901 - the same, judged
        told.append(one)
    return told


def _with_models(session: Session, batch: Batch, judged: Sequence[Judged]) -> list[Judged]:
    """The same, those refused whose model takes no jobs, or none of the key's that made the batch."""
    models = {one.wish.request.model for one in judged if one.wish is not None}
    faults = {model: _fault_of_model(session, batch, model) for model in models}
    return [
        _refused(one, fault) if one.wish and (fault := faults[one.wish.request.model]) is not None else one
        for one in judged
    ]


def fault_of_key(batch: Batch, model: str) -> Fault | None:
    """What is wrong where the key that made the batch is not for the model."""
    allowed = batch.allowed_models
    if allowed is None or model_name_of(model) in allowed:
        return None
    may_use = ", ".join(sorted(allowed))
    return Fault("model_not_allowed", f"the key may use {may_use}, and not {model!r}", "body.model")


def _fault_of_model(session: Session, batch: Batch, model: str) -> Fault | None:
    if (fault := fault_of_key(batch, model)) is not None:
        return fault
    try:
        choose(session, model)
    except ModelNotFound as error:
        return Fault(error.code, error.message, "body.model")
    return None


def _refused(one: Judged, fault: Fault) -> Judged:
    return Judged(one.raw, None, one.custom_id, [fault])


def _note(session: Session, batch: Batch, judged: Sequence[Judged]) -> None:
    """Add the lines, and go on behind them."""
    good = [_row(one) | {"batch_id": batch.id, "echo": one.wish.echo} for one in judged if one.wish is not None]
    if good:
        session.execute(insert(BatchLine), good)
    wrong = [one for one in judged if one.wish is None]
    add_invalid(session, batch, [_row(one) | {"error": _told(one.faults)} for one in wrong])
    last = judged[-1].raw
    batch.read_lines, batch.read_bytes = last.number, last.start + last.length
    batch.total_lines += len(judged)
    _add_errors(batch, [fault.document(one.raw.number) for one in wrong for fault in one.faults])


def _row(one: Judged) -> dict[str, Any]:
    raw = one.raw
    return {"line": raw.number, "custom_id": one.custom_id, "start": raw.start, "length": raw.length}


def _told(faults: Sequence[Fault]) -> dict[str, Any]:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    place = f"{first.param}: " if first.param else ""
    return {"code": first.code, "message": f"{place}{first.message}{more}"}


def _add_errors(batch: Batch, errors: Sequence[dict[str, Any]]) -> None:
    batch.errors = [*batch.errors, *errors][:MOST_ERRORS] if errors else batch.errors
    batch.error_count += len(errors)


def _conclude(session: Session, batch: Batch) -> None:
    if batch.total_lines == 0:
        _fail(session, batch, Fault("empty_file", "the file holds no line", "input_file_id"))
    elif batch.error_count and batch.invalid_lines == "refuse":
        _fail(session, batch)
    else:
        batch.state, batch.in_progress_at = BatchState.IN_PROGRESS, _now(session)
        tell(session, batch, BatchEvent.IN_PROGRESS)


def _fail(session: Session, batch: Batch, fault: Fault | None = None) -> None:
    if fault is not None:
        _add_errors(batch, [{"code": fault.code, "message": fault.message, "param": fault.param, "line": None}])
    batch.state, batch.finished_at = BatchState.FAILED, _now(session)
    tell(session, batch, BatchEvent.FAILED)


def _now(session: Session) -> Any:
    return session.scalar(select(func.clock_timestamp()))
