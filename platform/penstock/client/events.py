"""The typed events of a job's stream, and the cursor that each carries as its id."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from penstock.client.documents import AnyDocument
from penstock.client.errors import UnexpectedAnswer
from penstock.client.job_documents import Alternative, Job, TokenLogprob
from penstock.client.sse import Message

DELTA: Final = "output.delta"
REWOUND: Final = "output.rewound"
FINAL: Final = frozenset({"job.succeeded", "job.failed", "job.cancelled", "job.expired"})
_CURSOR: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Where a reader stands: the number of state events and of journal entries that it has had. Later is greater."""

    event: int = 0
    position: int = 0

    def __str__(self) -> str:
        return f"{self.event}.{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The cursor in an event's id. Raises `ValueError` when the text is none."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no event id: one looks like 3.57 (state event, token position)")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one choice, or the choice's end (`finish_reason`, and no token).

    Where `prompt_logprobs` were asked for, the first event holds those and no token. `text` is what the token added,
    which may be empty: its bytes can end in the middle of a character. `tool_calls` are what it added to the choice's
    calls: each has an `index` and a piece of `arguments` in its `function`, the first of a call also `id` and `name`.
    """

    id: str
    position: int
    choice: int
    index: int
    token_id: int | None
    text: str
    logprob: float | None = None
    finish_reason: str | None = None
    top_logprobs: list[Alternative] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    tool_calls: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class StateEvent:
    """Something that happened to the job, such as `job.running`. The last one brings the finished `job`."""

    id: str
    number: int
    type: str
    data: dict[str, Any]
    created_at: datetime
    job: Job | None = None

    @property
    def final(self) -> bool:
        """Whether the stream ends with this event."""
        return self.type in FINAL


Event = TokenEvent | StateEvent


def decode(message: Message) -> Event:
    """The event that a message carries. Raises `UnexpectedAnswer` when it carries none."""
    try:
        data = json.loads(message.data)
        return _token(message.id, data) if message.event == DELTA else _state(message.id, data)
    except (ValueError, TypeError, KeyError) as error:
        raise UnexpectedAnswer(
            f"the stream holds an event {message.event!r} that is not understood: {error}"
        ) from error


def _token(event_id: str | None, data: dict[str, Any]) -> TokenEvent:
    return TokenEvent(
        id=_known(event_id),
        position=data["position"],
        choice=data["choice"],
        index=data["index"],
        token_id=data["token_id"],
        text=data["text"],
        logprob=data.get("logprob"),
        finish_reason=data.get("finish_reason"),
        top_logprobs=_each(Alternative, data.get("top_logprobs")),
        prompt_logprobs=_each(TokenLogprob, data.get("prompt_logprobs")),
        tool_calls=data.get("tool_calls"),
    )


def _each(kind: type[AnyDocument], documents: list[Any] | None) -> list[AnyDocument] | None:
    return None if documents is None else [kind.model_validate(document) for document in documents]


def _state(event_id: str | None, data: dict[str, Any]) -> StateEvent:
    return StateEvent(
        id=_known(event_id),
        number=data["number"],
        type=data["type"],
        data=data["data"],
        created_at=datetime.fromisoformat(data["created_at"]),
        job=Job.model_validate(data["job"]) if "job" in data else None,
    )


def _known(event_id: str | None) -> str:
    return str(Cursor.parse(event_id or ""))
