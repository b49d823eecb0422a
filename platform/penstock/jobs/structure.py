"""What a job's output is held to: the grammar that its parameters ask for."""

from collections.abc import Mapping
from typing import Any, Protocol

from penstock.jobs.params import grammar_of

Structure = tuple[str, str | list[str]]
"""Kind (json_schema, regex, lark or choice) and source of a grammar."""


class WritesCalls(Protocol):
    """A model, as far as it can call tools."""

    def call_grammar(self, params: Mapping[str, Any], /) -> str:
        """The grammar of an answer with the tools of stored parameters, in Lark's syntax."""


def structure_of(params: Mapping[str, Any], model: WritesCalls) -> Structure | None:
    """The grammar that stored parameters ask for; None for any text.

    Raises `ValidationFailed` where the model cannot use the tools.
    """
    if params.get("tools"):
        return "lark", model.call_grammar(params)
    if params.get("response_format") is not None:
        return grammar_of(params["response_format"])
    return None
