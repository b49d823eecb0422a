"""How a job's tokens are chosen: the parameters of a generation, each with its limits.

The limits are those of the engine, which a test compares; what depends on the model is checked by `jobs.fitness`.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from penstock.strict_model import Strict as Strict
from penstock.tools.definitions import Tool, ToolChoice, problem_with_tools

MAX_SEED = 2**63 - 1
MAX_TOKENS = 10_000_000  # beyond any context: what fits the model is checked at submit
MAX_TOKEN_ID = 2**31 - 1
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_CHOICES = 128
MAX_GRAMMAR_CHARACTERS = 100_000
_LEAST_TEMPERATURE = 0.001
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]


class ResponseFormat(Strict):
    """What the output must be; beside `type` comes the member that the type needs, and no other."""

    type: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema", description="A JSON Schema")
    regex: GrammarText | None = Field(default=None, description="The whole output matches it")
    lark: GrammarText | None = Field(default=None, description="A grammar in Lark's syntax, with the rule `start`")
    choice: list[GrammarText] | None = Field(
        default=None, min_length=1, max_length=1000, description="The output is one of these texts"
    )

    @model_validator(mode="after")
    def _what_its_type_needs(self) -> Self:
        members = {"json_schema": self.json_schema, "regex": self.regex, "lark": self.lark, "choice": self.choice}
        given = [name for name, value in members.items() if value is not None]
        if given != [name for name in members if name == self.type]:
            needs = {"json_object": "no other member", "json_schema": "schema and no other member"}
            needed = needs.get(self.type, f"{self.type} and no other member")
            raise ValueError(f"with the type {self.type} give {needed}")
        schema = self.json_schema and json.dumps(self.json_schema)
        if schema and len(schema) > MAX_GRAMMAR_CHARACTERS:
            raise ValueError(f"the schema may have at most {MAX_GRAMMAR_CHARACTERS} characters, and has {len(schema)}")
        return self

    def stored(self) -> dict[str, Any]:
        """As a job's row keeps it, and as `grammar_of` reads it."""
        return self.model_dump(exclude_none=True)


def grammar_of(response_format: Mapping[str, Any]) -> tuple[str, str | list[str]]:
    """Kind (json_schema, regex, lark or choice) and source of the grammar that a stored format asks for."""
    match response_format:
        case {"type": "json_object"}:
            return "json_schema", '{"type": "object"}'
        case {"type": "json_schema", "schema": schema}:
            return "json_schema", json.dumps(schema)
        case {"type": kind}:
            return kind, response_format[kind]
    raise ValueError(f"no response format: {response_format!r}")


class JobParams(Strict):
    """Sampling. Without `seed` one is drawn at submit and kept: a resumed job samples on with the same noise."""

    response_format: ResponseFormat | None = Field(default=None, description="Structure that the output must have")
    tools: list[Tool] = Field(default_factory=list, description="What the model may call; it is you who runs it")
    tool_choice: ToolChoice = Field(
        default="auto", description="Calls of none, any (auto), at least one (required), or the named one"
    )
    parallel_tool_calls: bool = Field(default=True, description="Whether one answer may make several calls")
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_TOKENS, description="Most tokens of each choice; the rest of the context without it"
    )
    min_tokens: int = Field(
        default=0, ge=0, le=MAX_TOKENS, description="Tokens before which an end-of-text is not sampled"
    )
    temperature: float = Field(default=1.0, ge=0.0, le=100.0, description="0 is greedy; else at least 0.001")
    top_k: int = Field(default=0, ge=0, le=MAX_TOKEN_ID, description="Sample among the k likeliest tokens; 0 is all")
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Sample among the likeliest tokens of this total probability"
    )
    min_p: Probability = Field(default=0.0, description="Drop tokens less likely than this share of the likeliest")
    repetition_penalty: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Above 1 makes every token of prompt and output less likely"
    )
    presence_penalty: Penalty = Field(default=0.0, description="Taken once from the logit of each token in the output")
    frequency_penalty: Penalty = Field(default=0.0, description="Taken for each time that a token is in the output")
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=MAX_LOGIT_BIAS, description="Token ids, and what is added to their logits"
    )
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: list[StopText] = Field(default_factory=list, max_length=16, description="Each choice ends before such a text")
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=16)
    ignore_eos: bool = False
    logprobs: bool = Field(default=False, description="Tell each token's log-probability")
    top_logprobs: int = Field(
        default=0, ge=0, le=MAX_LOGPROBS, description="With logprobs: also those of so many of the likeliest tokens"
    )
    prompt_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="The same for the prompt's tokens, with so many of the likeliest",
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Choices to generate side by side")
    best_of: int | None = Field(
        default=None, ge=1, le=MAX_CHOICES, description="Generate so many, and tell the n likeliest once all have ended"
    )

    @field_validator("tools")
    @classmethod
    def _usable(cls, tools: list[Tool], known: ValidationInfo) -> list[Tool]:
        problem = problem_with_tools(tools)
        _require(not problem, problem)
        formatted = known.data.get("response_format") is not None
        _require(not (tools and formatted), "cannot come with a response_format: what the model says beside is free")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _among_the_tools(cls, choice: ToolChoice, known: ValidationInfo) -> ToolChoice:
        names = [tool.function.name for tool in known.data.get("tools", ())]
        _require(choice in ("none", "auto") or bool(names) or "tools" not in known.data, "needs tools")
        if not isinstance(choice, str):
            _require(choice.function.name in names or "tools" not in known.data, "must name one of the tools")
        return choice

    @field_validator("min_tokens")
    @classmethod
    def _below_the_most(cls, least: int, known: ValidationInfo) -> int:
        most = known.data.get("max_tokens")
        _require(most is None or least <= most, "must not be above max_tokens")
        wanted = _structure_in(known)
        _require(not (least and wanted), f"must be 0 with {wanted}: the structure says when the output may end")
        return least

    @field_validator("temperature")
    @classmethod
    def _greedy_or_warm(cls, temperature: float) -> float:
        _require(temperature == 0 or temperature >= _LEAST_TEMPERATURE, "must be 0 (greedy) or 0.001 to 100")
        return temperature

    @field_validator("logit_bias")
    @classmethod
    def _of_tokens(cls, bias: dict[str, float]) -> dict[str, float]:
        for token in bias:
            known = _TOKEN_ID.fullmatch(token) is not None and int(token) <= MAX_TOKEN_ID
            _require(known, f"{token[:20]!r} is no token id: write a number such as 42")
        return bias

    @field_validator("stop_token_ids")
    @classmethod
    def _not_within_a_call(cls, stops: list[int], known: ValidationInfo) -> list[int]:
        _require(not (stops and known.data.get("tools")), "must be empty with tools: a call ends where its form says")
        return stops

    @field_validator("ignore_eos")
    @classmethod
    def _not_with_a_format(cls, ignore: bool, known: ValidationInfo) -> bool:
        wanted = _structure_in(known)
        _require(not (ignore and wanted), f"must be false with {wanted}: the end of the structure is the end of text")
        return ignore

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top: int, known: ValidationInfo) -> int:
        _require(not top or known.data.get("logprobs", True), "needs logprobs to be true")
        return top

    @field_validator("best_of")
    @classmethod
    def _at_least_n(cls, best_of: int | None, known: ValidationInfo) -> int | None:
        _require(best_of is None or best_of >= known.data.get("n", 1), "must be at least n")
        return best_of

    @property
    def choices(self) -> int:
        """How many are generated."""
        return self.n if self.best_of is None else self.best_of


def asked_for(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a stored job's parameters that are not at their default."""
    fields = JobParams.model_fields
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return {name: value for name, value in params.items() if name not in defaults or value != defaults[name]}


def _structure_in(known: ValidationInfo) -> str:
    """What the output is held to, if anything."""
    if known.data.get("tools"):
        return "tools"
    return "a response_format" if known.data.get("response_format") is not None else ""


def _require(holds: bool, remedy: str) -> None:
    if not holds:
        raise ValueError(remedy)
