"""The answers of `/v1/responses` as Pydantic models: what the OpenAPI document says, held true by a test."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from penstock.openai_api.response_request import Includable


class _Exactly(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OutputText(_Exactly):
    """What the model says."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[dict[str, Any]]


class OutputMessage(_Exactly):
    """The answer."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class CallItem(_Exactly):
    """A call of one of the tools. `call_id` is what its result names; `arguments` are the text of a JSON object."""

    type: Literal["function_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class ResultItem(_Exactly):
    """What came of a call."""

    type: Literal["function_call_output"]
    id: str
    status: Literal["completed"]
    call_id: str
    output: str


class ResponseUsage(_Exactly):
    """Tokens. `input_tokens_details.cached_tokens` were not computed anew."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseProblem(_Exactly):
    """Why it failed."""

    code: str
    message: str


class ResponseDocument(_Exactly):
    """A response. Its job is `job_` with the same characters as behind `resp_`; `output` is what there is so far."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Unix seconds")
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    incomplete_details: dict[str, str] | None
    error: ResponseProblem | None
    model: str = Field(description="As it was asked for")
    output: list[OutputMessage | CallItem]
    usage: ResponseUsage | None = Field(description="Once it is over")
    previous_response_id: str | None
    instructions: str | None
    background: bool
    store: bool
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    text: dict[str, Any]
    reasoning: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: Literal["none", "auto", "required"] | dict[str, str]
    truncation: Literal["disabled"]
    service_tier: Literal["default", "flex"]
    safety_identifier: str | None
    prompt_cache_key: str | None
    user: str | None


class InputText(_Exactly):
    """What was said."""

    type: Literal["input_text"]
    text: str


class InputItem(_Exactly):
    """A message that the response answers. Its id is that of its place in this response."""

    type: Literal["message"]
    id: str
    status: Literal["completed"]
    role: Literal["system", "user", "assistant"]
    content: list[InputText | OutputText]


class InputItemPage(_Exactly):
    """A page of them."""

    object: Literal["list"]
    data: list[InputItem | CallItem | ResultItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(_Exactly):
    """It is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


def _includable(names: str) -> str:
    unknown = [name for name in names.split(",") if name not in get_args(Includable)]
    if unknown:
        raise ValueError(f"it must be one of {', '.join(get_args(Includable))}")
    return names


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include: Annotated[str, AfterValidator(_includable)] | None = Field(
        default=None, alias="include[]", description="Changes nothing: all is told that was asked for at first"
    )


class RetrieveQuery(_Query):
    """How a response is told."""

    stream: bool = Field(default=False, description="As events, from its beginning, while it runs or long after")
    starting_after: int | None = Field(
        default=None, ge=0, le=2**53, description="With stream: only events after the one of that `sequence_number`"
    )
    include_obfuscation: Literal["false"] | None = Field(default=None, description="Events are never padded")

    @model_validator(mode="after")
    def _of_a_stream(self) -> "RetrieveQuery":
        if self.starting_after is not None and not self.stream:
            raise ValueError("starting_after needs stream to be true")
        return self


class ItemsQuery(_Query):
    """Which page of the items."""

    after: str | None = Field(default=None, max_length=64, description="`last_id` of the page before")
    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["asc", "desc"] = Field(default="desc", description="desc is newest first")
