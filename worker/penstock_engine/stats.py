"""What the engine tells of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from penstock_engine.request import PromptLogprobs, RequestFailure, TokenDelta


class StepCounts(NamedTuple):
    """One step in numbers. `requests` and `tokens` ran; `running` and `waiting` are as it left them."""

    requests: int
    tokens: int
    decoding: int  # requests that ran a single token
    preempted: int
    running: int
    waiting: int


class StepOutput(NamedTuple):
    """What one step brought. `step` is its number, and stands still when there was nothing to run.

    `admitted` names the requests that began to run, each with how many tokens of its prompt were found in the cache.
    """

    step: int
    deltas: list[TokenDelta]
    failed: list[RequestFailure]
    counts: StepCounts
    admitted: list[tuple[str, int]]
    prompt_logprobs: Sequence[PromptLogprobs] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start, and the state now. pages_free + pages_cached + pages_in_use == pages_total.

    `pages_cached` hold prefixes that nobody is using; `tokens_cached` were found in the prefix cache at admission
    rather than computed, `tokens_computed` ran through the model (prompt, output and recomputed ones).
    """

    steps: int
    running: int
    waiting: int
    pages_total: int
    pages_free: int
    pages_cached: int
    pages_in_use: int
    tokens_generated: int
    tokens_computed: int
    tokens_cached: int
    preemptions: int
