"""The items of a response: the message that its job writes, and the calls that it makes."""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.openai_api.response_store import call_item, call_item_id, message_id
from penstock.openai_api.token_texts import TokenBytes, chat_logprobs

Document = dict[str, Any]


class Items:
    """Makes them. `vocabulary` is for log-probabilities, which are told of messages alone."""

    def __init__(self, vocabulary: TokenBytes | None) -> None:
        self._vocabulary = vocabulary

    def of_choice(self, job_id: str, choice: Mapping[str, Any], *, status: str, over: bool) -> list[Document]:
        """All that a choice holds so far: what is said, then what is called. The last of them has the status."""
        calls = choice.get("tool_calls", [])
        items: list[Document] = []
        if choice["text"] or (not calls and (over or self._vocabulary is not None)):
            items.append(self.message(job_id, "completed", [self.part(choice["text"], choice.get("logprobs", []))]))
        items += [self.call(job_id, index, "completed", call) for index, call in enumerate(calls)]
        for last in items[-1:]:
            last["status"] = status
        return items

    def message(self, job_id: str, status: str, parts: list[Document]) -> Document:
        """The message, with what it holds."""
        item = {"type": "message", "id": message_id(job_id), "status": status}
        return item | {"role": "assistant", "content": parts}

    def call(self, job_id: str, index: int, status: str, call: Mapping[str, Any]) -> Document:
        """The call of that index."""
        return call_item(call_item_id(job_id, index), status, call)

    def part(self, text: str, tokens: Sequence[Mapping[str, Any]]) -> Document:
        """The one piece of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs(tokens)}

    def logprobs(self, tokens: Sequence[Mapping[str, Any]]) -> list[Document]:
        """The tokens with their log-probabilities; none where none were asked for."""
        if self._vocabulary is None:
            return []
        told: list[Document] = chat_logprobs(tokens, self._vocabulary)["content"]
        return told
