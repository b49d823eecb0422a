"""Tools as a request describes them, and the calls and results that a conversation holds."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from penstock.strict_model import Strict

MAX_TOOLS: Final = 128
MAX_SCHEMA_CHARACTERS: Final = 100_000
ToolName = Annotated[str, StringConstraints(pattern=re.compile(r"^[a-zA-Z0-9_-]{1,64}$"))]
"""No quotes and no escapes, so that it reads the same inside JSON."""
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class FunctionDefinition(Strict):
    """What a tool is for, and the JSON Schema that its arguments satisfy."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="A JSON Schema whose type is object; without it the tool takes no arguments"
    )
    strict: bool | None = Field(default=None, description="Changes nothing: arguments always satisfy the schema")

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema and schema.get("type") != "object":
            raise ValueError('must be a schema with "type": "object"')
        return schema or None


class Tool(Strict):
    """A function that the model may call. It is the caller who runs it."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    """One of the tools, by its name."""

    name: str


class NamedChoice(Strict):
    """Have that tool called."""

    type: Literal["function"]
    function: NamedFunction


def _one_of_them(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(given)
    except ValidationError:
        raise ValueError('must be "none", "auto", "required", or an object that names a function') from None


ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedChoice, WrapValidator(_one_of_them)]


def _json_object(arguments: str) -> str:
    try:
        known = json.loads(arguments)
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise ValueError("must be the text of a JSON object; a call that was cut short cannot be gone on with")
    return arguments


Arguments = Annotated[str, AfterValidator(_json_object)]
"""The text of a JSON object."""


class CalledFunction(Strict):
    """What was called, with what."""

    name: ToolName
    arguments: Arguments


class MadeCall(Strict):
    """A call that the model made in an earlier turn."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


def problem_with_tools(tools: Sequence[Tool]) -> str:
    """What no model could use; empty where it can."""
    names = [tool.function.name for tool in tools]
    if len(tools) > MAX_TOOLS:
        return f"may hold at most {MAX_TOOLS} tools, and holds {len(tools)}"
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        return f"holds {twice[0]!r} twice: give each tool a name of its own"
    length = sum(len(json.dumps(tool.function.parameters)) for tool in tools)
    if length > MAX_SCHEMA_CHARACTERS:
        return f"may have schemas of at most {MAX_SCHEMA_CHARACTERS} characters together, and they have {length}"
    return ""


def named_function(choice: str | Mapping[str, Any]) -> str | None:
    """The tool that a stored choice names; None where it names none."""
    return None if isinstance(choice, str) else str(choice["function"]["name"])


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a stored tool's arguments: without one, an object with no members."""
    return tool["function"].get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
