"""How long each request took and what it cost, told once, when it has ended.

    submitted ──── queue ────► scheduled ──── prefill ────► first token ──── decode ────► last token
                               └────────────────────── inference ───────────────────────┘

The definitions are vLLM's (v1/metrics/stats.py): a token is there when the step that chose it ends, a request is
scheduled when the step that first runs it begins, and time lost to a preemption stays in the interval in which it fell.
There each choice is a request of its own; here they are one: scheduled with its first choice, done with its last token.

The device's time is shared out as it passes: a step's duration is split over its requests by the tokens that each ran
in it. What the shares of all requests sum up to is the time that the engine was busy, no more and no less; of steps
that overlap, the later one begins where the earlier one ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock_engine.batch import ScheduleBatch
from penstock_engine.request import Generation, TokenDelta


class RequestMeasures(NamedTuple):
    """One request that has ended. Seconds and tokens; all counts but `prompt_tokens` are sums over its choices.

    `ended` is a finish reason, or the code of what it failed of. What it never reached took no time: one that failed
    before its first token has no decode time, one that was dropped while it waited has only waited.
    """

    request_id: str
    ended: str
    choices: int
    prompt_tokens: int
    cached_tokens: int  # of the prompt: found in the prefix cache when a choice was first let in
    computed_tokens: int  # run through the model: prompt and output, recomputed ones again
    recomputed_tokens: int  # of these, run before, and lost to a preemption
    generated_tokens: int
    preemptions: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    gaps: int  # between consecutive tokens of one choice
    gap_seconds: float  # all of them together
    longest_gap_seconds: float

    @property
    def inference_seconds(self) -> float:
        """From when it was scheduled to its last token."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def time_to_first_token(self) -> float:
        """From submission."""
        return self.queue_seconds + self.prefill_seconds

    @property
    def inter_token_seconds(self) -> float:
        """From one token of a choice to its next, on average; 0 where there was no next."""
        return self.gap_seconds / self.gaps if self.gaps else 0.0


class StepShare(NamedTuple):
    """What one request had of one step. `recomputed` are those of its tokens that had run before."""

    request_id: str
    tokens: int
    recomputed: int
    seconds: float


@dataclass(slots=True)
class _Live:
    """A request in flight. Times are the engine's steady clock's."""

    generations: Sequence[Generation]
    open_choices: int
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: dict[int, float] = field(default_factory=dict)  # by choice
    generated: int = 0
    gaps: int = 0
    gap_seconds: float = 0.0
    longest_gap: float = 0.0
    recomputed_told: int = 0

    def recomputed_of(self, tokens: int) -> int:
        """How many of the `tokens` that a step ran had run before; each recomputed token is told once."""
        found = min(tokens, sum(each.recomputed for each in self.generations) - self.recomputed_told)
        self.recomputed_told += found
        return found

    def take(self, choice: int, now: float) -> None:
        """A token of `choice` came `now`."""
        self.generated += 1
        if self.first_token_at is None:
            self.first_token_at = now
        if (before := self.last_token_at.get(choice)) is not None:
            self.gaps += 1
            self.gap_seconds += now - before
            self.longest_gap = max(self.longest_gap, now - before)
        self.last_token_at[choice] = now


class Meter:
    """Follows every request from submission to its end. Costs a few operations per token."""

    def __init__(self) -> None:
        self._live: dict[str, _Live] = {}
        self._ended: list[RequestMeasures] = []
        self._shares: list[StepShare] = []
        self._shared_until = float("-inf")
        self.busy_seconds = 0.0

    def queue(self, generations: Sequence[Generation], now: float) -> None:
        """A request was submitted; these are its choices."""
        for generation in generations:
            generation.queued_at = now
        self._live[generations[0].request.id] = _Live(generations, len(generations))

    def note(self, batch: ScheduleBatch, started: float, now: float) -> None:
        """A step was committed: it began at `started`, and its tokens are there `now`."""
        for generation, _ in batch.entered:
            live = self._live.get(generation.request.id)
            if live is not None and live.scheduled_at is None:
                live.scheduled_at = started
        self._share(batch, started, now)
        for delta in batch.deltas:
            self._take(delta, started, now)
        for failure in batch.failures:
            self.end(failure.request_id, failure.code, now)

    def close_choice(self, request_id: str) -> None:
        """One choice of several was dropped: the request ends with the others."""
        if (live := self._live.get(request_id)) is not None:
            live.open_choices -= 1

    def end(self, request_id: str, how: str, now: float) -> None:
        """The request ended, if it is in flight."""
        if (live := self._live.pop(request_id, None)) is not None:
            self._ended.append(_measures(live, how, now))

    def take_ended(self) -> list[RequestMeasures]:
        """Those that ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def take_shares(self) -> list[StepShare]:
        """What the requests had of the steps that were committed since this was last asked."""
        shares, self._shares = self._shares, []
        return shares

    def _share(self, batch: ScheduleBatch, started: float, now: float) -> None:
        ran: dict[str, int] = {}
        for generation, extend_len in zip(batch.generations, batch.extend_lens, strict=True):
            ran[generation.request.id] = ran.get(generation.request.id, 0) + extend_len
        if not ran:
            return
        seconds = now - max(started, self._shared_until)
        self._shared_until = now
        self.busy_seconds += seconds
        each = seconds / sum(ran.values())
        for request_id, tokens in ran.items():
            live = self._live.get(request_id)
            again = 0 if live is None else live.recomputed_of(tokens)
            self._shares.append(StepShare(request_id, tokens, again, tokens * each))

    def _take(self, delta: TokenDelta, started: float, now: float) -> None:
        live = self._live.get(delta.request_id)
        if live is None:
            return
        if live.scheduled_at is None:
            live.scheduled_at = started  # it was let in by a step that failed
        live.take(delta.choice, now)
        if delta.finish_reason is not None:
            live.open_choices -= 1
            if not live.open_choices:
                self.end(delta.request_id, delta.finish_reason, now)


def _measures(live: _Live, how: str, now: float) -> RequestMeasures:
    request = live.generations[0].request
    scheduled = now if live.scheduled_at is None else live.scheduled_at
    first = now if live.first_token_at is None else live.first_token_at
    return RequestMeasures(
        request_id=request.id,
        ended=how,
        choices=len(live.generations),
        prompt_tokens=len(request.prompt_ids),
        cached_tokens=sum(min(each.found_len, each.prompt_len) for each in live.generations),
        computed_tokens=sum(each.computed for each in live.generations),
        recomputed_tokens=sum(each.recomputed for each in live.generations),
        generated_tokens=live.generated,
        preemptions=sum(each.preemptions for each in live.generations),
        queue_seconds=scheduled - live.generations[0].queued_at,
        prefill_seconds=first - scheduled,
        decode_seconds=max(live.last_token_at.values(), default=first) - first,
        gaps=live.gaps,
        gap_seconds=live.gap_seconds,
        longest_gap_seconds=live.longest_gap,
    )
