"""The end of a batch: its output and error files, in the order of the input, and then its last state with them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from penstock.batches.models import Batch
from penstock.batches.results import Results
from penstock.batches.states import BatchState, LineState
from penstock.batches.telling import BatchEvent, tell
from penstock.batches.turns import Turn, hold
from penstock.batches.workshop import Workshop
from penstock.files import services as files
from penstock.files.models import Purpose
from penstock.files.services import NewFile
from penstock.files.writing import Writing, writing

LINES_AT_ONCE: Final = 100
JSONL: Final = "application/jsonl"
_ENDS: Final = {BatchState.CANCELLING: BatchState.CANCELLED}


def finish(workshop: Workshop, turn: Turn, batch: Batch) -> None:
    """Write the files of a batch whose lines are all settled, and end it. A crash leaves no file and no end."""
    with ExitStack() as opened:
        outputs = _Outputs(workshop, batch, opened)
        for results in _all_results(workshop, turn):
            outputs.write(results)
    with workshop.database.transaction() as session:
        held = hold(session, turn)
        held.output_file_id = outputs.complete(session, "output")
        held.error_file_id = outputs.complete(session, "errors")
        end = _ENDS.get(BatchState(held.state)) or BatchState(held.ends_as or BatchState.COMPLETED)
        held.state, held.finished_at, held.blocker = end, session.scalar(select(func.clock_timestamp())), None
        tell(session, held, BatchEvent(f"batch.{end.value}"))


def jsonl(result: dict[str, Any]) -> bytes:
    """One line of a file of results."""
    return json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _all_results(workshop: Workshop, turn: Turn) -> Iterator[Sequence[dict[str, Any]]]:
    line = 0
    while True:
        with workshop.database.transaction() as session:
            told = Results(session, workshop.prompts, hold(session, turn))
            lines = told.lines_after(line, LINES_AT_ONCE)
            results = told.tell(lines)
        if not lines:
            return
        line = lines[-1].line
        yield results


class _Outputs:
    """The two files, each made when its first line comes."""

    def __init__(self, workshop: Workshop, batch: Batch, opened: ExitStack) -> None:
        self._workshop, self._batch, self._opened = workshop, batch, opened
        self._files: dict[str, Writing] = {}

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        for result in results:
            name = "output" if result["status"] == LineState.SUCCEEDED else "errors"
            self._file(name).write(jsonl(result))

    def complete(self, session: Session, name: str) -> str | None:
        """Show the file; its id, or None when no line came."""
        written = self._files.get(name)
        return files.complete(session, written.id, written.contents).id if written is not None else None

    def _file(self, name: str) -> Writing:
        if name not in self._files:
            batch = self._batch
            new = NewFile(
                batch.tenant_id,
                Purpose.BATCH_OUTPUT,
                f"{batch.id}_{name}.jsonl",
                JSONL,
                expires_seconds=batch.output_expires_seconds,
            )
            self._files[name] = self._opened.enter_context(
                writing(self._workshop.database, self._workshop.storage, new)
            )
        return self._files[name]
