"""A job's output, put together from its journal."""

from collections.abc import Iterable, Sequence
from math import fsum
from typing import Any

from penstock.jobs.journal import CallPiece, JournalEntry, PromptToken


def assemble_output(entries: Iterable[JournalEntry]) -> dict[str, Any]:
    """`{"choices": [{"index", "text", "token_ids", "finish_reason"}]}`; the reason is None until the choice ends.

    Where log probabilities were asked for, a choice has `logprobs` beside its tokens, the whole `prompt_logprobs` and
    their total, the `score`.
    A choice that called tools has `tool_calls`.
    """
    output: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if entry.prompt is not None:
            output["prompt_logprobs"] = prompt_document(entry.prompt)
            output["score"] = _total(entry.prompt)
            continue
        choice = choices.setdefault(
            entry.choice, {"index": entry.choice, "text": "", "token_ids": [], "finish_reason": None}
        )
        _add(entry, choice)
    return {"choices": [choices[index] for index in sorted(choices)]} | output


def count_tokens(entries: Iterable[JournalEntry]) -> int:
    """How many generated tokens the entries hold, over all choices."""
    return sum(entry.token_id is not None for entry in entries)


def prompt_document(prompt: Sequence[PromptToken]) -> list[dict[str, Any]]:
    """The prompt's tokens with their log probabilities, as they are told."""
    return [_token(token.token_id, token.logprob, token.top_logprobs) for token in prompt]


def _total(prompt: Sequence[PromptToken]) -> dict[str, Any]:
    """How many of the tokens were scored, and the natural logarithm of the chance of all of them."""
    logprobs = [token.logprob for token in prompt if token.logprob is not None]
    return {"tokens": len(logprobs), "logprob": fsum(logprobs)}


def alternatives(likeliest: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """The likeliest tokens of one place, as they are told."""
    return [{"token_id": token_id, "logprob": logprob} for token_id, logprob in likeliest]


def call_delta(piece: CallPiece) -> dict[str, Any]:
    """What a piece adds to the call of its index, as OpenAI's streams tell it."""
    head = {"index": piece.index, "id": piece.id, "type": "function"} if piece.id else {"index": piece.index}
    named = {"name": piece.name} if piece.name else {}
    return head | {"function": named | {"arguments": piece.arguments}}


def _add(entry: JournalEntry, choice: dict[str, Any]) -> None:
    choice["text"] += entry.text
    for piece in entry.calls:
        _add_to_calls(piece, choice.setdefault("tool_calls", []))
    if entry.token_id is not None:
        choice["token_ids"].append(entry.token_id)
        if entry.logprob is not None:
            told = _token(entry.token_id, entry.logprob, entry.top_logprobs or ())
            choice.setdefault("logprobs", []).append(told)
    if entry.finish_reason is not None:
        choice["finish_reason"] = entry.finish_reason


def _add_to_calls(piece: CallPiece, calls: list[dict[str, Any]]) -> None:
    if piece.id is not None:
        calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
    calls[piece.index]["function"]["arguments"] += piece.arguments


def _token(token_id: int, logprob: float | None, likeliest: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {"token_id": token_id, "logprob": logprob, "top_logprobs": alternatives(likeliest)}
