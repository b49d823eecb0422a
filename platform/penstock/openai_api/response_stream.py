"""A response's stream as Server-Sent Events: each named by its type, `[DONE]` after the last."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from flask import json

from penstock.errors import PenstockError, ServiceUnavailable
from penstock.jobs.stream import StreamItem
from penstock.openai_api.calls import STOPPING
from penstock.openai_api.problems import error_document
from penstock.openai_api.response_forms import ResponseEvents
from penstock.streaming import HEARTBEAT_SECONDS

_COMMENT: Final = ": still here\n\n"
_DONE: Final = "data: [DONE]\n\n"


def event_lines(events: ResponseEvents, batches: Iterable[Sequence[StreamItem]]) -> Iterator[str]:
    """The text of the stream, a piece a batch; a comment at once, and where nothing came for long.

    What goes wrong is told by an `error` event, which has the number of the event before it: the reader may go on
    after that one.
    """
    yield _COMMENT + "".join(map(_line, events.first()))
    last_sent = time.monotonic()
    try:
        for batch in batches:
            text = "".join(_line(event) for item in batch for event in events.take(item))
            if not text and time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
                text = _COMMENT
            if text:
                yield text
                last_sent = time.monotonic()
        if not events.over:
            raise ServiceUnavailable(STOPPING)
    except PenstockError as problem:
        yield _line(_error(problem, events.last_number))
    else:
        yield _DONE


def _error(problem: PenstockError, number: int) -> dict[str, Any]:
    told = error_document(problem.problem())["error"]
    members = {name: told[name] for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": number, **members}


def _line(event: Mapping[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
