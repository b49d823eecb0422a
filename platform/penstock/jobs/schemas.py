"""What a submitted job looks like. Unknown fields are refused; each message says what would be right."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, HttpUrl, StringConstraints, ValidationInfo, field_validator, model_validator

from penstock.clock import aware
from penstock.jobs.params import JobParams, Strict, TokenId
from penstock.jobs.states import JobClass
from penstock.strict_model import wrong_at
from penstock.tools.definitions import CallId, MadeCall
from penstock.usage.money import Currency, Money

MAX_BUDGET = 2**53
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:")
_OF_SCORES = frozenset({"prompt_logprobs"})
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]


def moment_in(deadline: object) -> object:
    """The deadline as it was given. Raises `ValueError` for text that gives no time of day."""
    if isinstance(deadline, str) and not _MOMENT.match(deadline):
        raise ValueError("must be a date and a time, as in 2030-01-31T12:00:00Z")
    return deadline


class Message(Strict):
    """One message of a conversation. Beside `tool_calls`, `content` may be null: nothing else was said."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[MadeCall] | None = Field(default=None, min_length=1, description="What the assistant called")
    tool_call_id: CallId | None = Field(default=None, description="Of a tool's result: the call that it answers")

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("tool_calls") and given.get("content") is None:
            return given | {"content": ""}
        return given

    @model_validator(mode="after")
    def _whose_they_are(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls belong to the role assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id comes with the role tool, and with no other")
        return self


class JobInput(Strict):
    """A finished `prompt`, or its `token_ids`, or `messages` that the model's own chat template turns into one."""

    prompt: str | None = Field(default=None, min_length=1)
    token_ids: list[TokenId] | None = Field(default=None, min_length=1, description="The prompt, tokenized already")
    messages: list[Message] | None = Field(default=None, min_length=1)
    continuation: str | None = Field(
        default=None, min_length=1, description="To score: the text that follows the prompt or messages"
    )
    continuation_token_ids: list[TokenId] | None = Field(
        default=None, min_length=1, description="The same after token_ids"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(given is not None for given in (self.prompt, self.token_ids, self.messages)) != 1:
            raise ValueError("give exactly one of prompt, token_ids and messages")
        if self.continuation is not None and self.token_ids is not None:
            raise wrong_at("continuation", "must be left out with token_ids; give continuation_token_ids")
        if self.continuation_token_ids is not None and self.token_ids is None:
            raise wrong_at("continuation_token_ids", "goes with token_ids; give continuation, as text")
        return self

    @property
    def continued(self) -> str | None:
        """The field of the continuation, where one is given."""
        given = [name for name in ("continuation", "continuation_token_ids") if getattr(self, name) is not None]
        return given[0] if given else None

    @model_validator(mode="after")
    def _results_of_calls(self) -> Self:
        made: set[str] = set()
        for message in self.messages or ():
            made |= {call.id for call in message.tool_calls or ()}
            if message.tool_call_id is not None and message.tool_call_id not in made:
                raise ValueError(f"a result names {message.tool_call_id[:64]!r}, which is no call made before it")
        return self


class JobWebhook(Strict):
    """Where to send the job's events; those of final states when `events` is empty."""

    url: str
    events: list[
        Literal[
            "job.queued", "job.running", "job.progress", "job.requeued", "job.rerouted",
            "job.cancel_requested", "output.rewound",
            "job.succeeded", "job.failed", "job.cancelled", "job.expired",
        ]
    ] = Field(default_factory=list)  # fmt: skip

    @field_validator("url")
    @classmethod
    def _http_address(cls, url: str) -> str:
        address = HttpUrl(url)
        if address.username or address.password:
            raise ValueError("must not hold a user name or password; deliveries are signed instead")
        return str(address)


class JobBudget(Strict):
    """What the job may cost, in tokens, in money, or both."""

    tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BUDGET,
        description="Prompt and output of all choices together; each gets an even share",
    )
    amount: Money | None = Field(default=None, gt=0, description="At most so much of `currency`, as text such as 0.05")
    currency: Currency | None = None

    @model_validator(mode="after")
    def _something_whole(self) -> Self:
        if (self.amount is None) != (self.currency is None):
            raise ValueError("amount and currency go together")
        if self.tokens is None and self.amount is None:
            raise ValueError("give tokens, or amount and currency")
        return self


class JobRequest(Strict):
    """The body of `POST /v1/jobs`."""

    kind: Literal["generate", "score"] = Field(
        default="generate", description="`score` tells how likely the model finds what is given, and generates nothing"
    )
    model: str = Field(min_length=1, max_length=200, description="name, name@alias or name:version")
    input: JobInput
    params: JobParams = Field(default_factory=JobParams)
    job_class: Literal["interactive", "batch"] = Field(default="interactive", alias="class")
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first within its class")
    deadline: datetime | None = Field(default=None, strict=False, description="RFC 3339; the job expires at it")
    budget: JobBudget | None = None
    webhook: JobWebhook | None = None
    tags: list[Tag] = Field(default_factory=list, max_length=16)
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)

    @field_validator("input")
    @classmethod
    def _continued_to_be_scored(cls, given: JobInput, known: ValidationInfo) -> JobInput:
        if given.continued is not None and known.data.get("kind") == "generate":
            raise wrong_at(given.continued, "must be left out, or kind be score")
        return given

    @field_validator("params")
    @classmethod
    def _of_its_kind(cls, params: JobParams, known: ValidationInfo) -> JobParams:
        for name in sorted(params.model_fields_set - _OF_SCORES):
            if known.data.get("kind") == "score":
                raise wrong_at(name, "must be left out: a score generates nothing; it has prompt_logprobs alone")
        return params

    @field_validator("deadline", mode="before")
    @classmethod
    def _a_moment(cls, deadline: object) -> object:
        return moment_in(deadline)

    @field_validator("deadline")
    @classmethod
    def _aware(cls, deadline: datetime | None) -> datetime | None:
        return aware(deadline) if deadline is not None else None

    @property
    def class_rank(self) -> JobClass:
        return JobClass[self.job_class.upper()]

    def stored_input(self) -> dict[str, Any]:
        """The input as the job's row keeps it."""
        return self.input.model_dump(exclude_none=True)

    def stored_params(self) -> dict[str, Any]:
        """The parameters as the job's row keeps them, without the seed, which has a column of its own."""
        document = self.params.model_dump(exclude={"seed", "tools"})
        document["tools"] = [tool.model_dump(exclude_none=True) for tool in self.params.tools]
        if self.params.response_format is not None:
            document["response_format"] = self.params.response_format.stored()
        return document
