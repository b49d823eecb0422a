"""Tools, choices and calls in the forms of a chat and of a response, and as a job has them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from penstock.strict_model import Strict
from penstock.tools.definitions import Arguments, CallId, NamedChoice, Tool, ToolName


class FunctionTool(Strict):
    """A tool of a response: a chat's, with no object around its members."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON Schema whose type is object")
    strict: bool | None = Field(default=None, description="Changes nothing: arguments always satisfy the schema")

    def as_job_tool(self) -> dict[str, Any]:
        """The tool as a job has it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class FunctionChoice(Strict):
    """Have the tool of that name called."""

    type: Literal["function"]
    name: str

    def as_job_choice(self) -> dict[str, Any]:
        """The choice as a job has it."""
        return {"type": "function", "function": {"name": self.name}}


def _one_of_them(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(given)
    except ValidationError:
        raise ValueError('must be "none", "auto", "required", or {"type": "function", "name": ...}') from None


ResponseToolChoice = Annotated[Literal["none", "auto", "required"] | FunctionChoice, WrapValidator(_one_of_them)]


class FunctionCall(Strict):
    """A call that was made in an earlier turn."""

    type: Literal["function_call"]
    call_id: CallId
    name: ToolName
    arguments: Arguments = Field(description="The text of a JSON object")
    id: str | None = Field(default=None, description="Changes nothing")
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def as_job_call(self) -> dict[str, Any]:
        """The call as an assistant's message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


class ResultPart(Strict):
    """A piece of a result. There are no others than text."""

    type: Literal["input_text", "output_text"]
    text: str


def _as_parts(output: Any) -> Any:
    return [{"type": "input_text", "text": output}] if isinstance(output, str) else output


class FunctionCallOutput(Strict):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[list[ResultPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[ResultPart])]
    id: str | None = Field(default=None, description="Changes nothing")
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def as_job_message(self) -> dict[str, Any]:
        """The result as the model's chat template gets it."""
        return {"role": "tool", "tool_call_id": self.call_id, "content": "".join(part.text for part in self.output)}


def chat_params(tools: Sequence[Tool], choice: str | NamedChoice | None, parallel: bool | None) -> dict[str, Any]:
    """The job's parameters about a chat's tools."""
    told = choice if choice is None or isinstance(choice, str) else choice.model_dump()
    return tool_params([tool.model_dump(exclude_none=True) for tool in tools], told, parallel)


def tool_params(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any] | None, parallel: bool | None
) -> dict[str, Any]:
    """The job's parameters about tools, as far as they were given."""
    given = {"tools": list(tools) or None, "tool_choice": choice, "parallel_tool_calls": parallel}
    return {name: value for name, value in given.items() if value is not None}
