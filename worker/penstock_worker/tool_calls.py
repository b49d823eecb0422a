"""One choice's tool calls: out of its text, into its journal's entries."""

from typing import Final

from penstock.jobs.journal import CallPiece
from penstock.tools.forms import CallForm
from penstock.tools.parser import CallParser, CallPart, Reading

Pieces = tuple[CallPiece, ...]
NO_CALLS: Final[Pieces] = ()


class CallReader:
    """Reads one choice of a job. Its calls' ids follow from the job, the choice and their places: nothing is drawn."""

    def __init__(self, form: CallForm, job_id: str, choice: int) -> None:
        self._parser = CallParser(form)
        self._prefix = f"call_{job_id.removeprefix('job_')}_{choice}"

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._parser.calls > 0

    def push(self, text: str) -> tuple[str, Pieces]:
        """What is said, and what is called, once this piece of text has come."""
        return self._told(self._parser.push(text))

    def flush(self) -> str:
        """What was held back and is said, at the end of the text."""
        return self._parser.flush().said

    def _told(self, reading: Reading) -> tuple[str, Pieces]:
        return reading.said, tuple(self._piece(part) for part in reading.parts)

    def _piece(self, part: CallPart) -> CallPiece:
        if part.name is None:
            return CallPiece(part.index, part.arguments)
        return CallPiece(part.index, part.arguments, f"{self._prefix}_{part.index}", part.name)
