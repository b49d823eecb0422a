"""A job in the form of a response: its document at any moment, and its stream as typed events."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from penstock.errors import JobStopped, ValidationFailed
from penstock.jobs.events import EventType
from penstock.jobs.states import JobState
from penstock.jobs.stream import StreamItem
from penstock.openai_api.response_items import Items
from penstock.openai_api.response_store import message_id, response_id
from penstock.openai_api.token_texts import TokenBytes

Document = dict[str, Any]
REWIND_STEP: Final = 100_000_000
"""Numbers after a rewind go on at the next multiple of this, beyond any output's, so that they are nobody's twice."""

_STATUS: Final = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
}
_LAST_EVENT: Final = {"completed": "response.completed", "failed": "response.failed"}
_EXPIRED: Final = {"code": "job_expired", "message": "it was not done by its deadline"}


class ResponseForm:
    """How one job is told as a response. `told` is how it was asked for; `vocabulary` is for log-probabilities."""

    def __init__(self, told: Mapping[str, Any], vocabulary: TokenBytes | None) -> None:
        self._told, self.items = told, Items(vocabulary)

    def document(self, job: Mapping[str, Any]) -> Document:
        """The response, of the document of its job as it stands."""
        state = JobState(job["status"])
        cut = state is JobState.SUCCEEDED and _finish_reason(job) == "length"
        status = "incomplete" if cut else _STATUS[state]
        return {
            "id": response_id(job["id"]),
            "object": "response",
            "created_at": _seconds(job["created_at"]),
            "completed_at": _seconds(job["finished_at"]) if status == "completed" else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "error": _error(job, state),
            "model": job["model"],
            "output": self._output(job, status),
            "usage": _usage(job["usage"]) if state.final else None,
            **self._told,
        }

    def _output(self, job: Mapping[str, Any], status: str) -> list[Document]:
        choices: Sequence[Mapping[str, Any]] = (job["output"] or {}).get("choices", [])
        over = JobState(job["status"]).final
        return [
            item
            for choice in choices
            for item in self.items.of_choice(job["id"], choice, status=_item_status(status), over=over)
        ]


class ResponseEvents:
    """The typed events of one response, made of what its job's stream tells from its beginning.

    The n-th event has `sequence_number` n, from 0, whoever reads it and whenever: it depends on nothing but what is
    stored. Only those after `after` are given out.
    """

    def __init__(self, form: ResponseForm, job: Mapping[str, Any], after: int) -> None:
        self._form, self._after = form, after
        self._job = {**job, "status": JobState.QUEUED, "output": None, "error": None, "finished_at": None}
        self._next = 0
        self._position = 0  # in the journal: entries before it were told
        self._running = False
        self._open: Document | None = None  # the item that is being told, as it began; `_text` is what it holds by now
        self._text, self._index = "", -1
        self.over = False

    @property
    def last_number(self) -> int:
        """That of the last event, given out or not."""
        return self._next - 1

    def first(self) -> Iterator[Document]:
        """What every response begins with."""
        yield from self._number("response.created", response=self._form.document(self._job))
        yield from self._number("response.queued", response=self._form.document(self._job))

    def take(self, item: StreamItem) -> Iterator[Document]:
        """The events that one item of the job's stream makes.

        Raises `JobStopped` when tokens that the reader had were lost, and `ValidationFailed` when the reader names an
        event that there never was.
        """
        if item.type == "output.delta":
            yield from self._delta(item.data)
        elif item.type == EventType.RUNNING:
            yield from self._run()
        elif item.type == EventType.REWOUND:
            self._rewind(item.data["data"]["position"])
        elif "job" in item.data:
            yield from self._end(item.data["job"])

    def _run(self) -> Iterator[Document]:
        if not self._running:
            self._running = True
            self._job = {**self._job, "status": JobState.RUNNING}
            yield from self._number("response.in_progress", response=self._form.document(self._job))

    def _delta(self, entry: Mapping[str, Any]) -> Iterator[Document]:
        self._position = entry["position"] + 1
        logprobs = self._form.items.logprobs([entry] if "logprob" in entry else [])
        if entry["text"] or logprobs:
            yield from self._say(entry["text"], logprobs)
        for piece in entry.get("tool_calls", ()):
            yield from self._call(piece)

    def _say(self, text: str, logprobs: list[Document]) -> Iterator[Document]:
        if self._open is None:
            yield from self._begin(self._form.items.message(self._job["id"], "in_progress", []))
        self._text += text
        yield from self._number("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _call(self, piece: Mapping[str, Any]) -> Iterator[Document]:
        if "id" in piece:
            if self._open is not None:
                yield from self._close(self._as_it_stands())
            called = {"id": piece["id"], "function": {"name": piece["function"]["name"], "arguments": ""}}
            yield from self._begin(self._form.items.call(self._job["id"], piece["index"], "in_progress", called))
        if arguments := piece["function"]["arguments"]:
            self._text += arguments
            place = {"item_id": self._opened["id"], "output_index": self._index}
            yield from self._number("response.function_call_arguments.delta", **place, delta=arguments)

    def _begin(self, item: Document) -> Iterator[Document]:
        self._open, self._text, self._index = item, "", self._index + 1
        yield from self._number("response.output_item.added", output_index=self._index, item=item)
        if item["type"] == "message":
            part = self._form.items.part("", [])
            yield from self._number("response.content_part.added", **self._place(), part=part)

    def _as_it_stands(self) -> Document:
        """The open item, which another one follows."""
        whole = {**self._opened, "status": "completed"}
        if whole["type"] == "message":
            return whole | {"content": [self._form.items.part(self._text, [])]}
        return whole | {"arguments": self._text}

    def _rewind(self, position: int) -> None:
        had, self._next = self._next, (self._next // REWIND_STEP + 1) * REWIND_STEP
        if position < self._position or had <= self._after < self._next:
            raise JobStopped("tokens that were told were lost, and others follow them; read the response anew")

    def _end(self, job: Mapping[str, Any]) -> Iterator[Document]:
        response = self._form.document(job)
        for item in response["output"][-1:]:  # those before it were closed when the next one began
            if self._open is None:
                yield from self._begin({**item, "status": "in_progress", "content": []})
            yield from self._close(item)
        yield from self._number(_LAST_EVENT.get(response["status"], "response.incomplete"), response=response)
        self.over = True
        if self._after > self.last_number:
            raise ValidationFailed(
                f"starting_after: the last event has the number {self.last_number}", field="starting_after"
            )

    def _close(self, item: Document) -> Iterator[Document]:
        if item["type"] == "message":
            (part,) = item["content"]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield from self._number("response.output_text.done", **self._place(), **text)
            yield from self._number("response.content_part.done", **self._place(), part=part)
        else:
            place = {"item_id": item["id"], "output_index": self._index}
            called = {"name": item["name"], "arguments": item["arguments"]}
            yield from self._number("response.function_call_arguments.done", **place, **called)
        yield from self._number("response.output_item.done", output_index=self._index, item=item)
        self._open = None

    @property
    def _opened(self) -> Document:
        if self._open is None:
            raise RuntimeError("no item is open")
        return self._open

    def _place(self) -> Document:
        return {"item_id": message_id(self._job["id"]), "output_index": self._index, "content_index": 0}

    def _number(self, kind: str, **members: Any) -> Iterator[Document]:
        number, self._next = self._next, self._next + 1
        if number > self._after:
            yield {"type": kind, "sequence_number": number, **members}


def _finish_reason(job: Mapping[str, Any]) -> str | None:
    choices: Sequence[Mapping[str, Any]] = (job["output"] or {}).get("choices", [])
    return choices[0]["finish_reason"] if choices else None


def _item_status(status: str) -> str:
    return status if status in ("completed", "in_progress") else "incomplete"


def _error(job: Mapping[str, Any], state: JobState) -> Document | None:
    if state is JobState.EXPIRED:
        return dict(_EXPIRED)
    if state is not JobState.FAILED:
        return None
    error = job["error"] or {}
    return {"code": error.get("code", "server_error"), "message": error.get("message", "see the job")}


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def _usage(counts: Mapping[str, Any]) -> Document:
    prompt, output = counts["prompt_tokens"] or 0, counts["output_tokens"]
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": counts["cached_tokens"] or 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + output,
    }
