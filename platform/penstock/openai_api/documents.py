"""The answers as Pydantic models: what the OpenAPI document says, held true by a test."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.jobs.documents import ToolCallDocument


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokenCounts(_Exactly):
    """`prompt_tokens_details.cached_tokens` were not computed anew; `completion_tokens` are those of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class ChatAnswer(_Exactly):
    """What the model says, and what it calls; `content` is null where it calls and says nothing."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallDocument] | None = None


class ChatChoice(_Exactly):
    """One answer. Those that end in calls end because of `tool_calls`."""

    index: int
    message: ChatAnswer
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Exactly):
    """The answer of a chat. `id` is the job's; `system_fingerprint` names the version that served it."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Unix seconds")
    model: str = Field(description="As it was asked for")
    system_fingerprint: str
    service_tier: Literal["default", "flex"]
    choices: list[ChatChoice]
    usage: TokenCounts


class TextChoice(_Exactly):
    """One completion; those of the first prompt come first."""

    index: int
    text: str
    logprobs: dict[str, list[Any]] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(_Exactly):
    """The completions. `id` is the first prompt's job; `system_fingerprint` names the version that served it."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Unix seconds")
    model: str = Field(description="As it was asked for")
    system_fingerprint: str
    choices: list[TextChoice]
    usage: TokenCounts
