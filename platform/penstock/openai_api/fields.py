"""What both kinds of calls have in common. Every published field is known; a value that cannot be honoured is refused.

Ranges are those of a job's parameters, which judge them; here is only what a job does not know.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from penstock.jobs.params import Strict

_TIERS: Final = {"flex": "batch"}


def _refuse(value: Any) -> None:
    if value not in (None, [], {}):
        raise ValueError("is not supported here; leave it out")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""A published field of which only null, or nothing in a list, can be honoured."""

Stop = Annotated[list[str] | None, BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None)]


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: bool | None = Field(default=None, description="End with a chunk that counts the tokens")
    include_obfuscation: Literal[False] | None = Field(default=None, description="Chunks are never padded")


class CallRequest(Strict):
    """The fields of both kinds of calls. Those from `top_k` on are ours; OpenAI has none like them."""

    model: str = Field(description="name, name@alias or name:version")
    n: int | None = Field(default=None, description="Choices")
    seed: int | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token ids, and what is added to their logits"
    )
    user: str | None = Field(default=None, max_length=512, description="Kept in the job's metadata")
    metadata: dict[str, str] | None = Field(default=None, description="Kept with the job")
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        default=None, description="flex waits behind all interactive jobs"
    )
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def shared_params(self) -> dict[str, Any]:
        """The job parameters that are called the same, as far as they were given."""
        given = {name: getattr(self, name) for name in _SAME}
        return {name: value for name, value in given.items() if value is not None}

    def job(self, job_input: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """The body of the job that serves this call."""
        user = {"user": self.user} if self.user is not None else {}
        return {
            "model": self.model,
            "input": job_input,
            "params": self.shared_params() | params,
            "class": _TIERS.get(self.service_tier or "", "interactive"),
            "metadata": user | (self.metadata or {}),
        }


_SAME: Final = (
    "n", "seed", "stop", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias",
    "top_k", "min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "ignore_eos",
)  # fmt: skip
