"""Jobs and their tokens in the form of a chat, or of completions: as one answer, or chunk by chunk."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.jobs.models import Job
from penstock.openai_api.chat_request import ChatRequest
from penstock.openai_api.completion_request import CompletionRequest
from penstock.openai_api.token_texts import CompletionLogprobs, TokenBytes, chat_logprobs, text_of

Document = dict[str, Any]


class Form(ABC):
    """How the jobs of one call are told. It remembers what was told of each choice."""

    answer_object: str
    chunk_object: str

    def __init__(self, jobs: Sequence[Job]) -> None:
        first = jobs[0]
        self._head = {
            "id": first.id,
            "created": int(first.created_at.timestamp()),
            "model": first.model,
            "system_fingerprint": f"{first.model_name}:{first.model_version}",
        }

    def answer(self, documents: Sequence[Mapping[str, Any]]) -> Document:
        """The whole answer, of the documents of the finished jobs."""
        choices = [
            self._choice(number, choice, document["output"].get("prompt_logprobs", []))
            for number, document in enumerate(documents)
            for choice in document["output"]["choices"]
        ]
        head = {"object": self.answer_object} | self._head
        return head | {"choices": choices, "usage": usage_of(documents)}

    def chunk(self, number: int, delta: Mapping[str, Any]) -> Document | None:
        """What one delta of the job of that number tells; None when it is nothing."""
        choice = self._choice_delta(number, delta)
        return {"object": self.chunk_object} | self._head | {"choices": [choice]} if choice is not None else None

    def usage_chunk(self, documents: Sequence[Mapping[str, Any]]) -> Document:
        """The last chunk, with no choices."""
        return {"object": self.chunk_object} | self._head | {"choices": [], "usage": usage_of(documents)}

    @abstractmethod
    def _choice(self, number: int, choice: Mapping[str, Any], prompt: Sequence[Mapping[str, Any]], /) -> Document:
        """One finished choice of a job, whose prompt's tokens come with it where they were asked for."""

    @abstractmethod
    def _choice_delta(self, number: int, delta: Mapping[str, Any], /) -> Document | None:
        """One step of a choice."""


class ChatForm(Form):
    """`vocabularies` are needed for log-probabilities alone."""

    answer_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, jobs: Sequence[Job], vocabularies: Sequence[TokenBytes]) -> None:
        super().__init__(jobs)
        self._head["service_tier"] = "flex" if request.service_tier == "flex" else "default"
        self._vocabulary = vocabularies[0] if request.logprobs else None
        self._begun: set[int] = set()
        self._at_first = None if request.tools else ""

    def _choice(self, _number: int, choice: Mapping[str, Any], _prompt: Sequence[Mapping[str, Any]]) -> Document:
        return {
            "index": choice["index"],
            "message": _message(choice),
            "logprobs": self._logprobs(choice.get("logprobs", [])),
            "finish_reason": choice["finish_reason"],
        }

    def _choice_delta(self, _number: int, delta: Mapping[str, Any]) -> Document | None:
        index, finish_reason = delta["choice"], delta.get("finish_reason")
        tokens = [delta] if "logprob" in delta else []
        told: Document = {"role": "assistant", "content": self._at_first} if index not in self._begun else {}
        self._begun.add(index)
        if delta["text"]:
            told["content"] = delta["text"]
        if "tool_calls" in delta:
            told["tool_calls"] = delta["tool_calls"]
        if not (told or tokens or finish_reason):
            return None
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": index, "delta": told, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, tokens: Sequence[Mapping[str, Any]]) -> Document | None:
        return chat_logprobs(tokens, self._vocabulary) if self._vocabulary is not None else None


class CompletionForm(Form):
    """`vocabularies`, one a job, are needed for log-probabilities and to echo token ids."""

    answer_object = chunk_object = "text_completion"

    def __init__(self, request: CompletionRequest, jobs: Sequence[Job], vocabularies: Sequence[TokenBytes]) -> None:
        super().__init__(jobs)
        self._n = request.n or 1
        self._vocabularies = vocabularies
        self._with_logprobs = request.logprobs is not None
        self._echoes = [_echo(number, request, vocabularies) for number in range(len(jobs))]
        self._prompts: list[Sequence[Mapping[str, Any]]] = [()] * len(jobs)
        self._tellers: dict[int, CompletionLogprobs | None] = {}

    def _choice(self, number: int, choice: Mapping[str, Any], prompt: Sequence[Mapping[str, Any]]) -> Document:
        teller = self._teller(number)
        return {
            "index": number * self._n + choice["index"],
            "text": self._echoes[number] + choice["text"],
            "logprobs": teller.tell([*prompt, *choice.get("logprobs", [])]) if teller else None,
            "finish_reason": choice["finish_reason"],
        }

    def _choice_delta(self, number: int, delta: Mapping[str, Any]) -> Document | None:
        if "prompt_logprobs" in delta:
            self._prompts[number] = delta["prompt_logprobs"]
            return None
        index, text = number * self._n + delta["choice"], delta["text"]
        tokens = [delta] if "logprob" in delta else []
        if index not in self._tellers:
            self._tellers[index] = self._teller(number)
            text, tokens = self._echoes[number] + text, [*self._prompts[number], *tokens]
        finish_reason, teller = delta.get("finish_reason"), self._tellers[index]
        if not (text or tokens or finish_reason):
            return None
        logprobs = teller.tell(tokens) if teller and tokens else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _teller(self, number: int) -> CompletionLogprobs | None:
        return CompletionLogprobs(self._vocabularies[number]) if self._with_logprobs else None


def names_tokens(request: ChatRequest | CompletionRequest) -> bool:
    """Whether the answer names tokens by their text."""
    if isinstance(request, ChatRequest):
        return bool(request.logprobs)
    echoes_ids = request.echo and any(isinstance(prompt, list) for prompt in request.prompt)
    return request.logprobs is not None or bool(echoes_ids)


def usage_of(documents: Sequence[Mapping[str, Any]]) -> Document:
    """The tokens of all jobs together."""
    counts = [document["usage"] for document in documents]
    prompt, cached, output = (
        sum(count[name] or 0 for count in counts) for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _message(choice: Mapping[str, Any]) -> Document:
    """What the model says, or null where it calls tools and says nothing beside."""
    calls = {"tool_calls": choice["tool_calls"]} if "tool_calls" in choice else {}
    content = choice["text"] or None if calls else choice["text"]
    return {"role": "assistant", "content": content, "refusal": None} | calls


def _echo(number: int, request: CompletionRequest, vocabularies: Sequence[TokenBytes]) -> str:
    if not request.echo:
        return ""
    prompt = request.prompt[number]
    return prompt if isinstance(prompt, str) else text_of(prompt, vocabularies[number])
