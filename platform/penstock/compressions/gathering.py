"""The text that a job calibrates and evaluates by, as lines of JSON: of other jobs, or of a file.

Both are taken at once, so that no text is in both unless one file was named for both.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from penstock.compressions.schemas import EvaluateRequest, FromFile, FromJobs, QuantizeRequest, newest_jobs
from penstock.compressions.texts import texts_of_jobs
from penstock.errors import NotFound, PenstockError
from penstock.files import services as files
from penstock.files.storage import FileStorage

_HELD_OUT: Final = 5  # every fifth part of a file evaluates what the rest calibrates


class NoText(PenstockError):
    """There is no text to work by any more; the job fails with it."""

    code = "no_text"
    title = "There is no text"


@dataclass(frozen=True, slots=True)
class Gathered:
    """The lines of each; None where none are asked for."""

    calibration: list[str] | None
    evaluation: list[str] | None


@dataclass(frozen=True, slots=True)
class Gatherer:
    """Reads for the jobs of one tenant, about one model."""

    session: Session
    storage: FileStorage
    tenant_id: str
    model_name: str

    def for_request(self, request: QuantizeRequest | EvaluateRequest) -> Gathered:
        """What the request asks for. Raises `NoText` where there is none, `NotFound` for a file that is gone."""
        if isinstance(request, EvaluateRequest):
            return Gathered(None, self._all(request.data, to_evaluate=True))
        texts, evaluation = request.texts, request.evaluation
        if evaluation is None:
            return Gathered(None if texts is None else self._all(texts), None)
        if texts is None:
            return Gathered(None, self._all(evaluation.data or newest_jobs(), to_evaluate=True))
        if evaluation.data is None:
            return self._divided(texts)
        if isinstance(texts, FromJobs) and isinstance(evaluation.data, FromJobs):
            return self._jobs(texts, evaluation.data)
        return Gathered(self._all(texts), self._all(evaluation.data, to_evaluate=True))

    def _divided(self, texts: FromJobs | FromFile) -> Gathered:
        if isinstance(texts, FromJobs):
            return self._jobs(texts, texts)
        lines = self._lines(texts)
        held_out = max(len(lines) // _HELD_OUT, 1)
        return Gathered(_some(lines[:-held_out]), _some(lines[-held_out:]))

    def _jobs(self, texts: FromJobs, data: FromJobs) -> Gathered:
        """The newest calibrate, those after them evaluate; of too few, each gets its share."""
        found = texts_of_jobs(self.session, self.model_name, self._of(texts), texts.count + data.count)
        first = min(texts.count, max(len(found) * texts.count // (texts.count + data.count), 1))
        return Gathered(
            _some([_line(text.to_calibrate) for text in found[:first]]),
            _some([_line(text.to_evaluate) for text in found[first:]]),
        )

    def _all(self, texts: FromJobs | FromFile, *, to_evaluate: bool = False) -> list[str]:
        if isinstance(texts, FromFile):
            return _some(self._lines(texts))
        found = texts_of_jobs(self.session, self.model_name, self._of(texts), texts.count)
        return _some([_line(text.to_evaluate if to_evaluate else text.to_calibrate) for text in found])

    def _lines(self, texts: FromFile) -> list[str]:
        try:
            key = files.get(self.session, self.tenant_id, texts.file_id).key
            with self.storage.reading(key) as file:
                return [line.decode() for line in file.read().splitlines() if line.strip()]
        except (NotFound, FileNotFoundError):
            raise NoText(f"the file {texts.file_id} is gone", field="file_id") from None
        except UnicodeDecodeError:
            raise NoText(f"the file {texts.file_id} should be UTF-8 text", field="file_id") from None

    def _of(self, texts: FromJobs) -> str | None:
        return None if texts.all_tenants else self.tenant_id


def _line(told: dict[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False)


def _some(lines: Sequence[str]) -> list[str]:
    if not lines:
        raise NoText("there is too little text to calibrate and to evaluate by: give more, or a file of it")
    return list(lines)
