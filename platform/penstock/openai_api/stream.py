"""A call's stream: chunks as Server-Sent Events, and `[DONE]`; an error ends it in place of that."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flask import json

from penstock.errors import JobStopped, PenstockError, ServiceUnavailable
from penstock.jobs.events import EventType
from penstock.jobs.stream import StreamItem
from penstock.openai_api.calls import STOPPING, Batch, problem_of
from penstock.openai_api.forms import Form
from penstock.openai_api.problems import error_document
from penstock.streaming import HEARTBEAT_SECONDS

_COMMENT: Final = ": still here\n\n"
_DONE: Final = "data: [DONE]\n\n"


@dataclass(slots=True)
class Telling:
    """One stream on its way. `jobs` is how many serve the call."""

    form: Form
    jobs: int
    counts_usage: bool
    _finished: list[Mapping[str, Any]] = field(default_factory=list)
    _broken: bool = False

    def lines(self, batches: Iterable[Batch]) -> Iterator[str]:
        """The text of the stream, a piece a batch; a comment at once, and where nothing came for long."""
        yield _COMMENT  # so that the client has the answer's head, however long the job waits
        last_sent = time.monotonic()
        for number, items in batches:
            text = self._told(number, items)
            if not text and time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
                text = _COMMENT
            if text:
                yield text
                last_sent = time.monotonic()
            if self._broken:
                return
        yield self._end()

    def _told(self, number: int, items: Sequence[StreamItem]) -> str:
        lines: list[str] = []
        try:
            lines.extend(self._line(number, item) for item in items)
        except PenstockError as problem:
            self._broken = True
            lines.append(_problem(problem))
        return "".join(lines)

    def _line(self, number: int, item: StreamItem) -> str:
        if item.type == "output.delta":
            chunk = self.form.chunk(number, item.data)
            return _data(chunk) if chunk is not None else ""
        if item.type == EventType.REWOUND:
            raise JobStopped("tokens that were told were lost, and others would follow them; send the call again")
        if "job" in item.data:
            self._note(item.data["job"])
        return ""

    def _note(self, document: Mapping[str, Any]) -> None:
        if (problem := problem_of(document)) is not None:
            raise problem
        self._finished.append(document)

    def _end(self) -> str:
        if len(self._finished) < self.jobs:
            return _problem(ServiceUnavailable(STOPPING))
        return (_data(self.form.usage_chunk(self._finished)) if self.counts_usage else "") + _DONE


def _problem(problem: PenstockError) -> str:
    return _data(error_document(problem.problem()))


def _data(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"
