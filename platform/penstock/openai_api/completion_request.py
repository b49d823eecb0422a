"""The body of `POST /v1/completions`, and the jobs that it asks for: one a prompt."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from penstock.jobs.params import MAX_TOKEN_ID
from penstock.openai_api.fields import CallRequest, Unsupported
from penstock.strict_model import wrong_at

MAX_PROMPTS: Final = 128
_DEFAULT_TOKENS: Final = 16  # as OpenAI's
Prompt = str | list[int]


def _as_prompts(given: Any) -> Any:
    """One or more prompts, whichever of the four forms they were given in."""
    prompts = given if isinstance(given, list) and not all(map(_is_token, given)) else [given]
    if not all(map(_is_prompt, prompts)):
        raise ValueError("give a text, a list of token ids, or a list of either, none of them empty")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"give at most {MAX_PROMPTS} prompts in one call")
    return prompts


def _is_prompt(value: Any) -> bool:
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and all(map(_is_token, value))))


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID


Prompts = Annotated[
    list[Prompt], BeforeValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
]


class CompletionRequest(CallRequest):
    """The body of `POST /v1/completions`."""

    prompt: Prompts = Field(description=f"A text, token ids, or a list of either, of at most {MAX_PROMPTS}")
    max_tokens: int | None = Field(
        default=None, description=f"Of each choice; {_DEFAULT_TOKENS} without it. With echo it may be 0"
    )
    best_of: int | None = None
    echo: bool | None = Field(default=None, description="Tell the prompt before each choice")
    logprobs: int | None = Field(default=None, description="Log-probabilities, with so many of the likeliest tokens")
    suffix: Unsupported = None

    def jobs(self) -> Sequence[dict[str, Any]]:
        """The body of each prompt's job."""
        if self.max_tokens == 0:
            return [self._score(prompt) for prompt in self.prompt]
        params: dict[str, Any] = {"max_tokens": _DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens}
        if self.best_of is not None:
            params["best_of"] = self.best_of
        if self.logprobs is not None:
            params |= {"logprobs": True, "top_logprobs": self.logprobs}
            params |= {"prompt_logprobs": self.logprobs} if self.echo else {}
        return [self.job(_input(prompt), params) for prompt in self.prompt]

    @model_validator(mode="after")
    def _something_to_tell(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise wrong_at("max_tokens", "it must be 1 or more, or 0 with echo, which then tells the prompt alone")
        if self.max_tokens == 0 and max(self.n or 1, self.best_of or 1) > 1:
            raise wrong_at("n", "it must be 1 where max_tokens is 0: there is one prompt to tell")
        return self

    def _score(self, prompt: Prompt) -> dict[str, Any]:
        body = self.job(_input(prompt), {})
        return body | {"kind": "score", "params": {"prompt_logprobs": self.logprobs}}

    def field_names(self) -> dict[str, str]:
        """What the fields of the job are called here, where that differs."""
        return _NAMES


def _input(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"token_ids": prompt}


_NAMES: Final = {
    "input.prompt": "prompt",
    "input.token_ids": "prompt",
    "input": "prompt",
    "params.top_logprobs": "logprobs",
    "params.prompt_logprobs": "logprobs",
    "class": "service_tier",
}
