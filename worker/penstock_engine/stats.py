"""What the engine tells of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from penstock_engine.batch import ScheduleBatch
from penstock_engine.measures import RequestMeasures, StepShare
from penstock_engine.request import PromptLogprobs, RequestFailure, TokenDelta


class StepCounts(NamedTuple):
    """One step in numbers. `requests` and `tokens` ran; `running` and `waiting` are as it left them."""

    requests: int
    tokens: int
    decoding: int  # requests that ran a single token
    preempted: int
    running: int
    waiting: int

    @classmethod
    def of(cls, batch: ScheduleBatch, *, running: int, waiting: int) -> Self:
        return cls(
            requests=len(batch.generations),
            tokens=sum(batch.extend_lens),
            decoding=batch.extend_lens.count(1),
            preempted=len(batch.preempted),
            running=running,
            waiting=waiting,
        )


class StepOutput(NamedTuple):
    """What one step brought. `step` is its number, and stands still when there was nothing to run.

    It is the step that ended last; with `EngineConfig.overlap` the next is in flight, and told by the next call.

    `admitted` names the requests that began to run, each with how many tokens of its prompt were found in the cache.
    `measures` are those of the requests that ended in this step, or were aborted since the one before. `shares` are
    what each request had of the device's time; `started` and `ended` are the step's, by the system's steady clock.
    """

    step: int
    deltas: list[TokenDelta]
    failed: list[RequestFailure]
    counts: StepCounts
    admitted: list[tuple[str, int]]
    prompt_logprobs: Sequence[PromptLogprobs] = ()
    measures: Sequence[RequestMeasures] = ()
    shares: Sequence[StepShare] = ()
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start, and the state now. pages_free + pages_cached + pages_in_use == pages_total.

    `pages_cached` hold prefixes that nobody is using; `tokens_cached` were found in the prefix cache at admission
    rather than computed, `tokens_computed` ran through the model (prompt, output and recomputed ones).
    `tokens_recomputed` had run before, and were lost to a preemption. As in vLLM, `prefix_queries` are the tokens of
    requests that were let in for the first time and `prefix_hits` those of them that were cached: what a preempted
    one finds of its own is no hit. `runs` sums over the steps how many ran in each; `busy_seconds` is what they took.
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
    tokens_recomputed: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    runs: int = 0
    max_running: int = 0
    busy_seconds: float = 0.0

    @property
    def kv_usage(self) -> float:
        """The share of the pages that someone is using; cached prefixes that nobody uses count as free. 0 to 1."""
        return self.pages_in_use / self.pages_total

    @property
    def hit_rate(self) -> float:
        """The share of the queried tokens that were cached; 0 where none was queried. 0 to 1."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0

    @property
    def occupancy(self) -> float:
        """How full the batch was in an average step: 1 is `max_running`; 0 before the first. 0 to 1."""
        return self.runs / (self.steps * self.max_running) if self.steps else 0.0
