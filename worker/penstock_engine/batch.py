"""One step's state, from the scheduler's choice to what came of it."""

from dataclasses import dataclass, field

from penstock_engine.request import Generation, RequestFailure, TokenDelta


@dataclass(slots=True)
class ScheduleBatch:
    """The generations of one step, and how many tokens each runs.

    `generations`, `extend_lens`, `copies`, `admitted` and `preempted` are written by `Scheduler.schedule`; the rest by
    `Scheduler.commit`.
    """

    budget: int  # tokens still to give out
    generations: list[Generation] = field(default_factory=list)
    extend_lens: list[int] = field(default_factory=list)  # 1 in steady decoding
    copies: list[tuple[int, int]] = field(default_factory=list)  # page to page, before anything is written
    admitted: list[tuple[str, int]] = field(default_factory=list)  # for the first time: request, prompt tokens cached
    preempted: int = 0

    deltas: list[TokenDelta] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
    dirty_pages: list[int] = field(default_factory=list)  # free, but may hold NaN: to be zeroed before reuse

    def add(self, generation: Generation, extend_len: int) -> None:
        self.generations.append(generation)
        self.extend_lens.append(extend_len)
        self.budget -= extend_len

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(generation.request.id for generation in self.generations))

    @property
    def sampled(self) -> list[Generation]:
        """Those whose last token runs in this step, in order: the next token can be chosen for them."""
        pairs = zip(self.generations, self.extend_lens, strict=True)
        return [generation for generation, extend_len in pairs if extend_len == generation.remaining_len]


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What the model and the sampler said, for `ScheduleBatch.sampled` in order. Written by the runner."""

    token_ids: list[int]
    finite: list[bool]  # False: the logits held NaN or infinity, the token means nothing
    logprobs: list[float]
    top_logprobs: dict[int, tuple[tuple[int, float], ...]]  # only where alternatives were asked for
