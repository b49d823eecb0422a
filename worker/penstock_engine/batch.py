"""One step's state, from the scheduler's choice to what came of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from penstock_engine.request import Generation, PromptLogprobs, RequestFailure, Scoring, TokenDelta


class ScoredRun(NamedTuple):
    """Prompt tokens that this step scores: the logits from the `offset`-th token of a run on predict `targets`."""

    at: int  # index into the batch's generations
    offset: int
    targets: list[int]
    tops: int


class RunScores(NamedTuple):
    """Log probabilities of a ScoredRun's targets, and beside each the likeliest."""

    logprobs: list[float]
    top_logprobs: list[tuple[tuple[int, float], ...]]


@dataclass(slots=True)
class ScheduleBatch:
    """The generations of one step, and how many tokens each runs.

    `generations`, `extend_lens`, `scored`, `copies`, `admitted`, `entered` and `preempted` are written by
    `Scheduler.schedule`; the rest by `Scheduler.commit`.
    """

    budget: int  # tokens still to give out
    generations: list[Generation] = field(default_factory=list)
    extend_lens: list[int] = field(default_factory=list)  # 1 in steady decoding
    copies: list[tuple[int, int]] = field(default_factory=list)  # page to page, before anything is written
    admitted: list[tuple[str, int]] = field(default_factory=list)  # for the first time: request, prompt tokens cached
    entered: list[tuple[Generation, int]] = field(default_factory=list)  # for the first time or again: tokens cached
    preempted: list[Generation] = field(default_factory=list)
    scored: list[ScoredRun] = field(default_factory=list)
    ending: list[Generation] = field(default_factory=list)  # whose prefill comes to its end
    twins: list[tuple[Generation, Generation]] = field(default_factory=list)  # who is sampled beside whom

    deltas: list[TokenDelta] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    tail_copies: list[tuple[int, int]] = field(default_factory=list)  # page to page, at once
    dirty_pages: list[int] = field(default_factory=list)  # free, but may hold NaN: to be zeroed before reuse

    def absorb(self, part: "ScheduleBatch") -> None:
        """Take over what was committed of a part of this batch."""
        self.admitted += part.admitted
        self.entered += part.entered
        self.deltas += part.deltas
        self.failures += part.failures
        self.prompt_logprobs += part.prompt_logprobs
        self.dirty_pages += part.dirty_pages

    def add(self, generation: Generation, extend_len: int) -> None:
        if generation.scoring is not None:
            self._score(generation, generation.scoring, extend_len)
        if not generation.published and extend_len == generation.remaining_len:
            self.ending.append(generation)
        self.generations.append(generation)
        self.extend_lens.append(extend_len)
        self.budget -= extend_len

    def _score(self, generation: Generation, scoring: Scoring, extend_len: int) -> None:
        offset = scoring.next - 1 - generation.computed_len
        count = min(extend_len - offset, scoring.lacking)
        if count > 0:
            targets = scoring.targets[scoring.next : scoring.next + count]
            self.scored.append(ScoredRun(len(self.generations), offset, targets, scoring.tops))

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(generation.request.id for generation in self.generations))

    @property
    def ends(self) -> list[Generation]:
        """Those whose last token runs in this step, in order: its logits say what comes next."""
        pairs = zip(self.generations, self.extend_lens, strict=True)
        return [generation for generation, extend_len in pairs if extend_len == generation.remaining_len]

    @property
    def sampled(self) -> list[Generation]:
        """Those for whom the next token is chosen: the `ends`, then the twins of some of them."""
        ends = self.ends
        return ends + [twin for twin, leader in self.twins if leader in ends] if self.twins else ends

    @property
    def logit_rows(self) -> list[int]:
        """For each of `sampled`, which of the `ends` has its logits."""
        at = {generation: row for row, generation in enumerate(self.ends)}
        return [*at.values(), *(at[leader] for _, leader in self.twins if leader in at)]


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What the model and the sampler said, for `ScheduleBatch.sampled` in order. Written by the runner."""

    token_ids: list[int]
    finite: list[bool]  # False: the logits held NaN or infinity, the token means nothing
    logprobs: list[float]
    top_logprobs: dict[int, tuple[tuple[int, float], ...]]  # only where alternatives were asked for
    broken_grammars: dict[int, str] = field(default_factory=dict)  # where nothing can follow, and why
    scores: list[RunScores] = field(default_factory=list)  # for `ScheduleBatch.scored` in order
