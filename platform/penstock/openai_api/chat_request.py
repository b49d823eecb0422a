"""The body of `POST /v1/chat/completions`, and the job that it asks for."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from penstock.jobs.params import Strict
from penstock.openai_api.fields import CallRequest, Unsupported
from penstock.openai_api.tools import chat_params
from penstock.tools.definitions import CallId, MadeCall, Tool, ToolChoice


class TextPart(Strict):
    """A piece of a message. There are no others than text."""

    type: Literal["text"]
    text: str


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Content = Annotated[
    list[TextPart] | None, BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart] | None)
]


class ChatMessage(Strict):
    """One message. `developer` is another word for `system`; a `tool` tells what came of a call."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = Field(default=None, description="May be left out, or null, beside tool_calls")
    tool_calls: list[MadeCall] | None = Field(default=None, description="What the assistant called")
    tool_call_id: CallId | None = Field(default=None, description="The call whose result a tool's message is")
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    annotations: Unsupported = None

    @model_validator(mode="after")
    def _something_said(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("give content")
        return self

    def as_job_message(self) -> dict[str, Any]:
        """The message as the model's chat template gets it."""
        role = "system" if self.role == "developer" else self.role
        calls = {"tool_calls": [call.model_dump() for call in self.tool_calls]} if self.tool_calls else {}
        answered = {"tool_call_id": self.tool_call_id} if self.tool_call_id is not None else {}
        return {"role": role, "content": "".join(part.text for part in self.content or ())} | calls | answered


class NamedSchema(Strict):
    """A JSON Schema. The output is always held to it, whatever `strict` says; name and description change nothing."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ChatFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("give json_schema with the type json_schema, and with no other")
        return self

    def as_job_format(self) -> dict[str, Any] | None:
        """The job's `response_format`; None for any text."""
        if self.type == "text":
            return None
        return {"type": self.type} | ({"schema": self.json_schema.schema_} if self.json_schema else {})


class ChatRequest(CallRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, description="The older name of max_completion_tokens")
    max_completion_tokens: int | None = Field(default=None, description="Of each choice; else the rest of the context")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ChatFormat | None = None
    store: Literal[False] | None = Field(default=None, description="Every call is kept, as its job")
    modalities: list[Literal["text"]] | None = None
    tools: list[Tool] | None = Field(default=None, description="What the model may call")
    tool_choice: ToolChoice | None = Field(default=None, description="auto, unless it is said")
    parallel_tool_calls: bool | None = Field(default=None, description="false: at most one call in an answer")
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    prompt_cache_key: str | None = Field(default=None, description="Changes nothing: whatever is equal is shared")
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None
    safety_identifier: str | None = Field(default=None, description="Changes nothing")
    functions: Unsupported = None
    audio: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_options: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("give max_tokens or max_completion_tokens, or the same for both")
        return self

    def jobs(self) -> Sequence[dict[str, Any]]:
        """The body of the one job that serves this call."""
        given = {
            "max_tokens": self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "response_format": self.response_format.as_job_format() if self.response_format else None,
        }
        params = {name: value for name, value in given.items() if value is not None}
        params |= chat_params(self.tools or (), self.tool_choice, self.parallel_tool_calls)
        return [self.job({"messages": [message.as_job_message() for message in self.messages]}, params)]

    def field_names(self) -> dict[str, str]:
        """What the fields of the job are called here, where that differs."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return _NAMES | {"params.max_tokens": limit}


_NAMES: Final = {
    "input.messages": "messages",
    "input": "messages",
    "params.response_format.schema": "response_format.json_schema.schema",
    "class": "service_tier",
}
