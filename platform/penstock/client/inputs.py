"""What a job is asked with."""

from typing import Any, Literal, NotRequired, TypedDict


class Message(TypedDict):
    """One message of a conversation. Beside `tool_calls`, `content` may be None; a tool's names the call it answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


class ResponseFormat(TypedDict):
    """What the output must be; beside `type` comes the member that the type needs, and no other."""

    type: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    schema: NotRequired[dict[str, Any]]
    regex: NotRequired[str]
    lark: NotRequired[str]
    choice: NotRequired[list[str]]


class Params(TypedDict, total=False):
    """Sampling; what is left out is the server's default."""

    response_format: ResponseFormat | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[str, float]
    seed: int | None
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: int | None
    n: int
    best_of: int | None


class Webhook(TypedDict):
    """Where events of the job are sent; those of final states when `events` is left out."""

    url: str
    events: NotRequired[list[str]]
