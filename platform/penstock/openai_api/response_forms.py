"""A job in the form of a response: its document at any moment, and its stream as typed events."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from penstock.errors import JobStopped, ValidationFailed
from penstock.jobs.events import EventType
from penstock.jobs.states import JobState
from penstock.jobs.stream import StreamItem
from penstock.openai_api.response_store import message_id, response_id
from penstock.openai_api.token_texts import TokenBytes, chat_logprobs

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
        self._told, self._vocabulary = told, vocabulary

    def document(self, job: Mapping[str, Any]) -> Document:
        """The response, of the document of its job as it stands."""
        state, choice = JobState(job["status"]), _choice(job)
        cut = state is JobState.SUCCEEDED and choice is not None and choice["finish_reason"] == "length"
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
            "output": [self.item(job, _item_status(status), choice)] if choice is not None else [],
            "usage": _usage(job["usage"]) if state.final else None,
            **self._told,
        }

    def item(self, job: Mapping[str, Any], status: str, choice: Mapping[str, Any] | None) -> Document:
        """The message that the job writes, with what it holds so far; nothing yet without a choice."""
        content = [] if choice is None else [self.part(choice["text"], choice.get("logprobs", []))]
        return {
            "type": "message",
            "id": message_id(job["id"]),
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str, tokens: Sequence[Mapping[str, Any]]) -> Document:
        """The one piece of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(tokens)}

    def logprobs(self, tokens: Sequence[Mapping[str, Any]]) -> list[Document]:
        """The tokens with their log-probabilities; none where none were asked for."""
        if self._vocabulary is None:
            return []
        told: list[Document] = chat_logprobs(tokens, self._vocabulary)["content"]
        return told


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
        self._running = self._begun = False
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
        logprobs = self._form.logprobs([entry] if "logprob" in entry else [])
        if entry["text"] or logprobs:
            yield from self._begin()
            yield from self._number(
                "response.output_text.delta", **self._place(), delta=entry["text"], logprobs=logprobs
            )

    def _begin(self) -> Iterator[Document]:
        if not self._begun:
            self._begun = True
            item = self._form.item(self._job, "in_progress", None)
            yield from self._number("response.output_item.added", output_index=0, item=item)
            yield from self._number("response.content_part.added", **self._place(), part=self._form.part("", []))

    def _rewind(self, position: int) -> None:
        had, self._next = self._next, (self._next // REWIND_STEP + 1) * REWIND_STEP
        if position < self._position or had <= self._after < self._next:
            raise JobStopped("tokens that were told were lost, and others follow them; read the response anew")

    def _end(self, job: Mapping[str, Any]) -> Iterator[Document]:
        response = self._form.document(job)
        for item in response["output"]:
            yield from self._begin()
            yield from self._close(item)
        yield from self._number(_LAST_EVENT.get(response["status"], "response.incomplete"), response=response)
        self.over = True
        if self._after > self.last_number:
            raise ValidationFailed(
                f"starting_after: the last event has the number {self.last_number}", field="starting_after"
            )

    def _close(self, item: Document) -> Iterator[Document]:
        (part,) = item["content"]
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        yield from self._number("response.output_text.done", **self._place(), **text)
        yield from self._number("response.content_part.done", **self._place(), part=part)
        yield from self._number("response.output_item.done", output_index=0, item=item)

    def _place(self) -> Document:
        return {"item_id": message_id(self._job["id"]), "output_index": 0, "content_index": 0}

    def _number(self, kind: str, **members: Any) -> Iterator[Document]:
        number, self._next = self._next, self._next + 1
        if number > self._after:
            yield {"type": kind, "sequence_number": number, **members}


def _choice(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices: Sequence[Mapping[str, Any]] = (job["output"] or {}).get("choices", [])
    return choices[0] if choices else None


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
