"""One step's state, from the scheduler's choice to what came of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from penstock_engine.request import (
    FinishReason,
    Generation,
    PromptLogprobs,
    Reader,
    RequestFailure,
    RunScores,
    Scoring,
    TokenDelta,
)


class ScoredRun(NamedTuple):
    """Prompt tokens that this step scores: the logits from the `offset`-th token of a run on predict `targets`."""

    at: int  # index into the batch's generations
    offset: int
    targets: list[int]
    tops: int
    position: int = 0  # of the first target, in its sequence
    reader: Reader | None = None


@dataclass(slots=True)
class ScheduleBatch:
    """The generations of one step, and how many tokens each runs.

    All down to `twins` is written by `Scheduler.schedule`, the rest by `Scheduler.commit`; so are `admitted` and
    `entered` for twins, who are let in when they are sampled. `left` and `spare_pages` are written while it is the
    latest step in flight.
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
    ends: list[Generation] = field(default_factory=list)  # whose last token runs: its logits say what comes next
    twins: list[tuple[Generation, Generation]] = field(default_factory=list)  # who is sampled beside whom

    deltas: list[TokenDelta] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    tail_copies: list[tuple[int, int]] = field(default_factory=list)  # page to page, before the next step
    dirty_pages: list[int] = field(default_factory=list)  # may hold NaN: to be zeroed before another has them

    left: list[Generation] = field(default_factory=list)  # who was to leave, and keeps its pages until this has ended
    spare_pages: list[int] = field(default_factory=list)  # free once this has ended

    def absorb(self, part: "ScheduleBatch") -> None:
        """Take over what was committed of a part of this batch."""
        self.admitted += part.admitted
        self.entered += part.entered
        self.tail_copies += part.tail_copies
        self.deltas += part.deltas
        self.failures += part.failures
        self.prompt_logprobs += part.prompt_logprobs
        self.dirty_pages += part.dirty_pages

    @property
    def awaits(self) -> bool:
        """Whether it runs tokens that the step before has chosen, and the host does not know yet."""
        return any(each.awaited for each in self.generations)

    def add(self, generation: Generation, extend_len: int) -> None:
        if generation.scoring is not None:
            self._score(generation, generation.scoring, extend_len)
        if extend_len == generation.remaining_len:
            self.ends.append(generation)
            if not generation.published and not generation.awaited:
                self.ending.append(generation)
        self.generations.append(generation)
        self.extend_lens.append(extend_len)
        self.budget -= extend_len

    def _score(self, generation: Generation, scoring: Scoring, extend_len: int) -> None:
        offset = scoring.next - 1 - generation.computed_len
        count = min(extend_len - offset, scoring.lacking)
        if count > 0:
            targets = scoring.targets[scoring.next : scoring.next + count]
            at = len(self.generations)
            self.scored.append(ScoredRun(at, offset, targets, scoring.tops, scoring.next, scoring.reader))

    def drop_ended(self) -> None:
        """Leave out those who ended after it was launched: what it ran for them is counted nowhere."""
        if not any(each.ended for each in self.generations):
            return
        pairs = zip(self.generations, self.extend_lens, strict=True)
        kept = [pair for pair in pairs if not pair[0].ended]
        self.generations, self.extend_lens = [each for each, _ in kept], [extend_len for _, extend_len in kept]

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(generation.request.id for generation in self.generations))

    @property
    def is_live(self) -> bool:
        """Whether anybody is left for whom it was launched."""
        return any(not each.ended for each in self.generations)

    @property
    def sampled(self) -> list[Generation]:
        """Those for whom the next token is chosen: the `ends`, then the twins of some of them."""
        return self.ends + [twin for twin, leader in self.twins if leader in self.ends] if self.twins else self.ends

    @property
    def draws(self) -> bool:
        """Whether anybody is to be told what comes next: who only scores is not."""
        return any(each.request.scored_from is None for each in self.sampled)

    @property
    def logit_rows(self) -> list[int]:
        """For each of `sampled`, which of the `ends` has its logits."""
        at = {generation: row for row, generation in enumerate(self.ends)}
        return [*at.values(), *(at[leader] for _, leader in self.twins if leader in at)]

    def undrawn(self, scores: list[RunScores]) -> "StepSamples":
        """What is told of a step that `draws` nothing: tokens that mean nothing, and whether its scores do."""
        sound = {
            self.generations[run.at]: not np.isnan(found.own).any()
            for run, found in zip(self.scored, scores, strict=True)
        }
        count = len(self.sampled)
        return StepSamples([0] * count, [sound[each] for each in self.sampled], [0.0] * count, {}, scores=scores)

    def take_scores(self, samples: "StepSamples") -> None:
        """Add what this step scored to what is gathered; what is complete is told."""
        for run, scores in zip(self.scored, samples.scores, strict=True):
            generation = self.generations[run.at]
            scoring = generation.scoring
            if generation.ended:
                continue
            assert scoring is not None  # it was when this step was chosen
            scoring.take(scores)
            if scoring.is_complete:
                found = (np.concatenate(parts) for parts in zip(*scoring.found, strict=True))
                self.prompt_logprobs.append(PromptLogprobs(generation.request.id, scoring.start, *found))
                generation.scoring = None


@dataclass(frozen=True, slots=True)
class StepSamples:
    """What the model and the sampler said, for `ScheduleBatch.sampled` in order. Written by the runner."""

    token_ids: list[int]
    finite: list[bool]  # False: the logits held NaN or infinity, the token means nothing
    logprobs: list[float]
    top_logprobs: dict[int, tuple[tuple[int, float], ...]]  # only where alternatives were asked for
    broken_grammars: dict[int, str] = field(default_factory=dict)  # where nothing can follow, and why
    scores: list[RunScores] = field(default_factory=list)  # for `ScheduleBatch.scored` in order

    def problem_at(self, at: int, position: int) -> tuple[str, str] | None:
        """Why the `at`-th token, for `position` of the output, cannot be: a failure's code and message."""
        if not self.finite[at]:
            return "logits_not_finite", f"the model's output is not finite at position {position}"
        if at in self.broken_grammars:
            return "grammar_failed", f"its grammar cannot go on at position {position}: {self.broken_grammars[at]}"
        return None

    def delta(self, at: int, generation: Generation, reason: FinishReason | None) -> TokenDelta:
        """The `at`-th token, which `generation` has just appended."""
        request = generation.request
        return TokenDelta(
            request.id,
            generation.choice,
            generation.output_len - 1,
            self.token_ids[at],
            self.logprobs[at] if request.sampling.logprobs is not None else None,
            reason,
            self.top_logprobs.get(at, ()),
        )
