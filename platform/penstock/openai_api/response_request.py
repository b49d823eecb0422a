"""The body of `POST /v1/responses` (Open Responses, 2026-04-24), and the job that it asks for."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from penstock.jobs.params import Strict
from penstock.openai_api.fields import CallRequest, Unsupported
from penstock.openai_api.tools import (
    FunctionCall,
    FunctionCallOutput,
    FunctionTool,
    ResponseToolChoice,
    tool_params,
)

LOGPROBS: Final = "message.output_text.logprobs"
Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Message = dict[str, Any]
"""`role`, `content` and what belongs to tools, as a job's input holds them."""


class InputPart(Strict):
    """A piece of a message. There are no others than text; what an answer says beside it may be sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(default=None, description="Changes nothing")
    logprobs: list[Any] | None = Field(default=None, description="Changes nothing")


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _known_kind(kind: Any) -> Any:
    if kind != "message":
        raise ValueError("it must be message, function_call or function_call_output")
    return kind


class InputMessage(Strict):
    """One message of the conversation. `developer` is another word for `system`."""

    type: Annotated[Literal["message"], BeforeValidator(_known_kind)] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[InputPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart])]
    id: str | None = Field(default=None, description="Changes nothing")
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(default=None, description="Changes nothing")

    def as_job_message(self) -> Message:
        """The message as the model's chat template gets it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(part.text for part in self.content)}


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _kind_of(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return f"({kind})" if kind in ("function_call", "function_call_output") else "(message)"


InputItem = Annotated[
    Annotated[InputMessage, Tag("(message)")]
    | Annotated[FunctionCall, Tag("(function_call)")]
    | Annotated[FunctionCallOutput, Tag("(function_call_output)")],
    Discriminator(_kind_of),
]


class TextFormat(Strict):
    """What the text must be. The output is always held to a schema, whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, max_length=64)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> Self:
        if (self.schema_ is not None and self.name is not None) != (self.type == "json_schema"):
            raise ValueError("give name and schema with the type json_schema, and with no other")
        return self

    def as_job_format(self) -> dict[str, Any] | None:
        """The job's `response_format`; None for any text."""
        if self.type == "text":
            return None
        return {"type": self.type} | ({"schema": self.schema_} if self.schema_ is not None else {})


class TextOptions(Strict):
    """How the text is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """Nothing is thought in secret here: of each option only the value that asks for nothing."""

    effort: Literal["none"] | None = None
    summary: Unsupported = None
    generate_summary: Unsupported = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponseRequest(CallRequest):
    """The body of `POST /v1/responses`."""

    input: Annotated[
        list[InputItem] | None, BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem] | None)
    ] = Field(default=None, description="A text is a user's message")
    instructions: str | None = Field(default=None, description="Goes before the conversation, of this response alone")
    previous_response_id: str | None = Field(default=None, max_length=64, description="The conversation goes on there")
    store: bool | None = Field(
        default=None, description="false: it cannot be fetched later; its job is kept all the same"
    )
    background: bool | None = Field(default=None, description="Goes on when the connection closes")
    max_output_tokens: int | None = Field(default=None, description="Else the rest of the context")
    text: TextOptions | None = None
    top_logprobs: int | None = Field(default=None, description="Log-probabilities, with so many of the likeliest")
    include: list[Includable] | None = Field(
        default=None, description=f"{LOGPROBS} tells log-probabilities; the others are of items that there are not"
    )
    truncation: Literal["disabled"] | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = Field(default=None, description="What the model may call; it is you who runs it")
    tool_choice: ResponseToolChoice | None = Field(default=None, description="auto, unless it is said")
    max_tool_calls: int | None = Field(
        default=None, ge=1, description="Changes nothing: it counts calls that a server runs by itself"
    )
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call in an answer")
    prompt_cache_key: str | None = Field(default=None, description="Changes nothing: whatever is equal is shared")
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None
    safety_identifier: str | None = Field(default=None, max_length=128, description="Changes nothing")
    n: Literal[1] | None = Field(default=None, description="A response has one answer")
    conversation: Unsupported = None
    context_management: Unsupported = None
    prompt: Unsupported = None
    moderation: Unsupported = None
    image: Unsupported = None
    access_programs: Unsupported = None
    prompt_cache_options: Unsupported = None

    @model_validator(mode="after")
    def _background_is_stored(self) -> Self:
        if self.background and self.store is False:
            raise ValueError("a background response is fetched later: leave store out, or true")
        return self

    @model_validator(mode="after")
    def _something_to_answer(self) -> Self:
        if not self.input and not self.instructions:
            raise ValueError("give input, a text or messages")
        return self

    @model_validator(mode="after")
    def _logprobs_of_text(self) -> Self:
        if self.tools and self.with_logprobs:
            raise ValueError("log-probabilities are told of answers without tools: leave them out")
        return self

    @property
    def stored(self) -> bool:
        """Whether it can be fetched later."""
        return self.store is not False

    @property
    def with_logprobs(self) -> bool:
        """Whether each token's log-probability is told."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def response_job(self, before: Sequence[Message]) -> dict[str, Any]:
        """The body of the job that serves this response; `before` is the conversation that it goes on with."""
        instructions = [{"role": "system", "content": self.instructions}] if self.instructions else []
        said = _as_messages(self.input or ())
        params: dict[str, Any] = {"logprobs": True} if self.with_logprobs else {}
        given = {
            "max_tokens": self.max_output_tokens,
            "top_logprobs": self.top_logprobs,
            "response_format": self.text.format.as_job_format() if self.text and self.text.format else None,
        }
        params |= {name: value for name, value in given.items() if value is not None}
        tools = [tool.as_job_tool() for tool in self.tools or ()]
        params |= tool_params(tools, self._job_choice, self.parallel_tool_calls)
        return self.job({"messages": [*instructions, *before, *said]}, params)

    def field_names(self) -> dict[str, str]:
        """What the fields of the job are called here, where that differs."""
        schemas = [f"tools.{place}" for place in range(len(self.tools or ()))]
        return _NAMES | {f"params.{tool}.function.parameters": f"{tool}.parameters" for tool in schemas}

    @property
    def _job_choice(self) -> str | dict[str, Any] | None:
        choice = self.tool_choice
        return choice if choice is None or isinstance(choice, str) else choice.as_job_choice()

    def told(self) -> dict[str, Any]:
        """What every document of the response says of how it was asked for."""
        text = self.text.model_dump(exclude_none=True) if self.text else {}
        return {
            "previous_response_id": self.previous_response_id,
            "instructions": self.instructions,
            "background": bool(self.background),
            "store": self.stored,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": _given(self.temperature, 1.0),
            "top_p": _given(self.top_p, 1.0),
            "presence_penalty": _given(self.presence_penalty, 0.0),
            "frequency_penalty": _given(self.frequency_penalty, 0.0),
            "top_logprobs": self.top_logprobs or 0,
            "text": {"format": {"type": "text"}} | text,
            "reasoning": self.reasoning.model_dump(exclude_none=True) if self.reasoning else {},
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "tool_choice": self.model_dump(include={"tool_choice"})["tool_choice"] or "auto",
            "truncation": "disabled",
            "service_tier": "flex" if self.service_tier == "flex" else "default",
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
            "user": self.user,
        }


def _as_messages(items: Sequence[InputMessage | FunctionCall | FunctionCallOutput]) -> list[Message]:
    """The items as messages: calls belong to the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        if not isinstance(item, FunctionCall):
            messages.append(item.as_job_message())
            continue
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(item.as_job_call())
    return messages


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


_NAMES: Final = {
    "input.messages": "input",
    "params.max_tokens": "max_output_tokens",
    "params.response_format.schema": "text.format.schema",
    "class": "service_tier",
}
