"""Whether a request fits the model that is to serve it: its length, its budget, its tokens, its structure.

The engine would refuse the same later, when nobody waits for an answer any more.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from penstock.errors import ContextLengthExceeded, ValidationFailed
from penstock.jobs.schemas import JobRequest
from penstock.jobs.structure import Structure
from penstock.tools.definitions import parameters_of


class Vocabulary(Protocol):
    """The tokens of one model."""

    @property
    def size(self) -> int:
        """Token ids are below it."""

    def problem_with(self, kind: str, source: str | Sequence[str]) -> str:
        """Why no output can be held to this grammar; empty where one can."""

    def bytes_of(self, token_id: int) -> bytes:
        """What the token writes; of a special token its name."""

    def is_special(self, token_id: int) -> bool:
        """Whether it stands for no text."""


def refuse_unfit(
    request: JobRequest,
    *,
    prompt_tokens: int,
    context_length: int,
    vocabulary: Callable[[], Vocabulary],
    structure: Callable[[], Structure | None],
) -> None:
    """Raise `ContextLengthExceeded` or `ValidationFailed`, naming the field and what would be right.

    `vocabulary` is asked for only where the parameters name tokens or ask for structure, which `structure` tells.
    """
    if request.params.tools and request.input.messages is None:
        raise _wrong("params.tools", "cannot be shown in a finished prompt", "give input.messages")
    if request.kind == "score" and prompt_tokens < 2:
        raise _wrong("input", "has one token, and none before it to score it by", "it must have two or more")
    _refuse_too_long(request, prompt_tokens, context_length)
    _refuse_too_dear(request, prompt_tokens)
    named = _tokens_named(request)
    wanted = structure() if request.params.tools or request.params.response_format is not None else None
    if named or wanted is not None:
        known = vocabulary()
        _refuse_unknown_tokens(named, known.size)
        if wanted is not None:
            _refuse_unsatisfiable(request, wanted, known)


def _refuse_too_long(request: JobRequest, prompt_tokens: int, context_length: int) -> None:
    wanted = 0 if request.kind == "score" else request.params.max_tokens or 1
    if prompt_tokens + wanted > context_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens and asks for {wanted} more; the context holds {context_length}",
            field="input",
            prompt_tokens=prompt_tokens,
            max_tokens=wanted,
            context_length=context_length,
        )


def _refuse_too_dear(request: JobRequest, prompt_tokens: int) -> None:
    choices = 0 if request.kind == "score" else request.params.choices
    least = prompt_tokens + choices
    if request.budget is not None and request.budget.tokens is not None and request.budget.tokens < least:
        raise _wrong(
            "budget.tokens", "does not suffice", f"it must be {least} or more: the prompt, and a token for each choice"
        )


def _tokens_named(request: JobRequest) -> Mapping[str, Sequence[int]]:
    params = request.params
    named = {"params.logit_bias": [int(token) for token in params.logit_bias]}
    named["input.token_ids"] = request.input.token_ids or []
    named["input.continuation_token_ids"] = request.input.continuation_token_ids or []
    named["params.stop_token_ids"] = params.stop_token_ids
    return {field: ids for field, ids in named.items() if ids}


def _refuse_unknown_tokens(named: Mapping[str, Sequence[int]], size: int) -> None:
    for field, ids in named.items():
        if unknown := [token for token in ids if token >= size]:
            raise _wrong(field, f"names the token {unknown[0]}, which this model lacks", f"it has 0 to {size - 1}")


def _refuse_unsatisfiable(request: JobRequest, structure: Structure, vocabulary: Vocabulary) -> None:
    if not (problem := vocabulary.problem_with(*structure)):
        return
    wanted = request.params.response_format
    if wanted is None:
        raise _wrong_tools(request, problem, vocabulary)
    place = {"json_schema": ".schema", "json_object": ""}.get(wanted.type, f".{wanted.type}")
    raise _wrong(f"params.response_format{place}", "cannot be used", problem)


def _wrong_tools(request: JobRequest, problem: str, vocabulary: Vocabulary) -> ValidationFailed:
    """It names the first schema that is at fault by itself, or else the tools as a whole."""
    for place, tool in enumerate(request.params.tools):
        schema = parameters_of(tool.model_dump(exclude_none=True))
        if fault := vocabulary.problem_with("json_schema", json.dumps(schema)):
            return _wrong(f"params.tools.{place}.function.parameters", "cannot be used", fault)
    return _wrong("params.tools", "cannot be used", problem)


def _wrong(field: str, message: str, expected: str) -> ValidationFailed:
    problem = {"field": field, "message": message, "expected": expected}
    return ValidationFailed(f"{field}: {message}; {expected}", field=field, errors=[problem])
