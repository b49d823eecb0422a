"""What the engine is asked, what it answers, and where each generation stands in between.

A `Request` is the caller's and never changes. A `Generation` is one choice of it on its way through the engine;
the scheduler alone moves it. A `TokenDelta` is one token's answer.

    tokens:      [ prompt .................. | output ........ ]
                 0                           prompt_len        len(tokens)
    in KV pool:  [ cached_len | computed by this run ... | in flight ]
                 0                                       settled_len computed_len
    pages:       [ shared with the tree, locked by `node` | owned by this generation ]
                 0                                        shared_pages               len(pages)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from penstock_engine.grammar import Matcher
    from penstock_engine.radix_cache import TreeNode

# A delta ends with "stop" or "length"; "error" is what a RequestFailure is, and "abort" what the caller asked for.
FinishReason = Literal["stop", "length", "abort", "error"]
RequestClass = Literal["interactive", "batch", "shadow"]
CLASS_RANK: dict[str, int] = {"interactive": 0, "batch": 1, "shadow": 2}
# Told a position, and float32 log probabilities [rows, vocabulary] of what stands there and at those that follow: a
# tensor, of which policy knows nothing.
Reader = Callable[[int, Any], None]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must be: JSON that a schema admits, a regex's or a lark grammar's language, one of some strings.

    `source` is the schema as JSON text, the regex, the lark grammar (with the rule `start`), or the strings.
    """

    kind: Literal["json_schema", "regex", "lark", "choice"]
    source: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose each next token.

    `temperature` 0 is greedy. `top_k` 0 keeps all; `min_p` drops what is less likely than that share of the likeliest.
    `repetition_penalty` divides positive logits, and multiplies negative ones, of every token in prompt or output;
    `presence_penalty` is taken once, `frequency_penalty` once per occurrence, from the logits of tokens in the output;
    `logit_bias` holds (token, added to its logit). Greedy choices see all four as well.

    `seed` (64 bits) is drawn by the engine when None. `max_tokens` counts the whole output, resumed tokens included;
    None is as long as the context allows. `logprobs` None computes none, 0 the chosen token's, k > 0 also the k
    likeliest alternatives'. Log probabilities are the model's own (natural log), before penalties, temperature and
    filters. `prompt_logprobs` is the same for the prompt's tokens, from the second on; what is scored is computed,
    not taken from the prefix cache.

    `n` choices are generated side by side, sharing the prompt's pages; `best_of` generates that many, and tells the n
    of the highest cumulative log probability once all have ended.

    `grammar` is what the output's bytes must be; the end of sequence comes when, and only when, they may be complete.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = 0
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    grammar: Grammar | None = None

    @property
    def choices(self) -> int:
        """How many are generated."""
        return self.n if self.best_of is None else self.best_of

    @property
    def selects(self) -> bool:
        """More are generated than told."""
        return self.choices > self.n

    @property
    def penalises(self) -> bool:
        """What was said before changes what may be said next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to generate.

    `output_ids` holds one list per choice of tokens that were generated already, by this engine or another:
    generation goes on at the next position, with the noise that the undisturbed run would have used there.
    `closed` are choices that are not to go on: the caller has ended them, by a text that the engine does not know.
    `namespace` separates prefix caches: nothing cached under one is ever seen from another.

    `tenant` is whose share of the engine this uses, and `weight` how large that share is beside those of others.
    `deadline` is when the answer is of no more use, in seconds since the epoch: what has not ended by then fails as
    "deadline_exceeded". `token_budget` is what the request may cost in tokens, its prompt and the outputs of all
    choices together; each choice may use an even share of it, and ends by "length" there.
    `scored_from` asks for nothing but the log probabilities of `prompt_ids` from there on, which may fill the context:
    what comes before `scored_from - 1` is taken from the prefix cache where it is there, and the one token that
    is then told means nothing. With it a `reader` may be told the whole distributions: on the engine's device, some
    rows at a time, in the order of their positions, each as soon as it is computed and none kept. A step that has to
    be run again tells them again.
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams = SamplingParams()
    output_ids: tuple[list[int], ...] | list[list[int]] = ()
    namespace: str = ""
    priority: int = 0
    request_class: RequestClass = "batch"
    tenant: str = ""
    weight: float = 1.0
    deadline: float | None = None
    token_budget: int | None = None
    closed: frozenset[int] = frozenset()
    scored_from: int | None = None
    reader: Reader | None = None


def choice_name(request_id: str, choice: int) -> str:
    """What a choice is called in a trace: its request's id, with the choice behind a slash from 1 on."""
    return f"{request_id}/{choice}" if choice else request_id


class TokenDelta(NamedTuple):
    """One generated token. `position` counts output tokens from 0; `finish_reason` comes with the last one."""

    request_id: str
    choice: int
    position: int
    token_id: int
    logprob: float | None
    finish_reason: FinishReason | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class RunScores(NamedTuple):
    """Log probabilities of some given tokens, and in the place of each the likeliest, as many as were asked for."""

    own: "NDArray[np.float32]"  # [tokens]; NaN where the model's output is not finite
    ids: "NDArray[np.int32]"  # [tokens, tops], the likeliest first
    tops: "NDArray[np.float32]"  # [tokens, tops], theirs


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Log probabilities of the prompt's tokens from `start` on, each given those before it; once per request.

    The arrays are those of `RunScores`; the lists are made of them when they are asked for, outside of the step.
    """

    request_id: str
    start: int
    own: "NDArray[np.float32]"
    ids: "NDArray[np.int32]"
    tops: "NDArray[np.float32]"

    @property
    def logprobs(self) -> list[float]:
        found: list[float] = self.own.tolist()
        return found

    @property
    def top_logprobs(self) -> list[tuple[tuple[int, float], ...]]:
        """For each the likeliest: ids and log probabilities."""
        places = zip(self.ids.tolist(), self.tops.tolist(), strict=True)
        return [tuple(zip(ids, values, strict=True)) for ids, values in places]


class RequestFailure(NamedTuple):
    """A request that ended without a token of its own to say so; its pages are free again."""

    request_id: str
    choice: int
    code: str
    message: str


@dataclass(slots=True)
class Scoring:
    """Tokens whose log probabilities are gathered while the ones before them run.

    targets:  [ given ... | found ........ | asked | to be found ...... ]
              0           start                    next                 len(targets)

    The logits of token i score targets[i + 1]. It may be longer by one than what runs.
    """

    start: int  # at least 1
    targets: list[int]
    tops: int  # how many of the likeliest are told beside each
    reader: Reader | None = None
    found: list[RunScores] = field(default_factory=list)
    found_len: int = 0  # targets in them
    asked: int = 0  # beyond those found, of steps in flight

    def take(self, scores: RunScores) -> None:
        """The next of them."""
        self.found.append(scores)
        self.found_len += len(scores.own)

    @property
    def next(self) -> int:
        """The first that no step has asked for."""
        return self.start + self.found_len + self.asked

    @property
    def lacking(self) -> int:
        """How many are still to be asked for."""
        return len(self.targets) - self.next

    @property
    def is_complete(self) -> bool:
        return not self.lacking and not self.asked


@dataclass(slots=True, eq=False)
class Generation:
    """One choice of one request. Written by the scheduler, except where a comment names another."""

    request: Request
    choice: int
    arrival: int  # order of submission, kept through preemption
    tokens: list[int]  # prompt, then output
    prompt_len: int
    limit: int  # `tokens` never grows past this length
    stop_ids: frozenset[int]
    seed: int
    row: int = -1  # index into the batch's per-row tables while running
    awaited: int = 0  # tokens behind `tokens` that steps in flight choose
    spoiled: bool = False  # its own pages may hold NaN
    ended: bool = False  # nothing more is said of it, though a step in flight may still run it
    computed_len: int = 0  # tokens whose K and V are in the pool, or will be once the steps in flight have ended
    settled_len: int = 0  # of these, computed by steps that have ended
    cached_len: int = 0  # and of these, found in the prefix cache at the last admission
    pages: list[int] = field(default_factory=list)
    shared_pages: int = 0  # leading pages that belong to the tree
    node: "TreeNode | None" = None  # what this generation has locked
    copy_from: "TreeNode | Generation | None" = None  # keeps `copy_page` until its beginning is in our first own page
    copy_page: int = 0
    published: bool = False  # the full pages of this run's prefill are in the tree
    preemptions: int = 0
    queued_at: float = 0.0  # when it was submitted; written by `measures`, by the engine's steady clock
    found_len: int = 0  # tokens found in the prefix cache when it was first let in
    furthest_len: int = 0  # the most that `settled_len` has ever been
    computed: int = 0  # tokens run through the model, over all its runs
    recomputed: int = 0  # of these, run before already, and lost to a preemption
    scoring: Scoring | None = None  # until all of it is found
    matcher: "Matcher | None" = None  # where the output is in its grammar; moved on by `masks`

    def settle(self, extend_len: int) -> int:
        """Note that its next `extend_len` tokens have run; returns how many of them had run before."""
        reached = self.settled_len + extend_len
        again = max(0, min(reached, self.furthest_len) - self.settled_len)
        self.furthest_len = max(reached, self.furthest_len)
        self.computed += extend_len
        self.recomputed += again
        self.settled_len = reached
        return again

    @property
    def name(self) -> str:
        return choice_name(self.request.id, self.choice)

    @property
    def order(self) -> tuple[int, int, float, int, int]:
        """Who goes first among those of one tenant: class, priority (higher first), deadline, then age."""
        request = self.request
        deadline = inf if request.deadline is None else request.deadline
        return (CLASS_RANK[request.request_class], -request.priority, deadline, self.arrival, self.choice)

    @property
    def own_pages(self) -> list[int]:
        return self.pages[self.shared_pages :]

    @property
    def pending_copy(self) -> tuple[int, int] | None:
        """From the page whose beginning matches, to the first own page; None when nothing is to be copied."""
        if self.copy_from is None or self.computed_len > self.cached_len:  # its first step does it
            return None
        return self.copy_page, self.pages[self.shared_pages]

    @property
    def length(self) -> int:
        """How many tokens there are, those counted in that only the device knows."""
        return len(self.tokens) + self.awaited

    @property
    def remaining_len(self) -> int:
        """Tokens to run through the model before the next one can be sampled; 1 in steady decoding.

        0 where what is in flight ends it by its length.
        """
        return 0 if self.awaited and self.length >= self.limit else self.length - self.computed_len

    @property
    def reusable(self) -> list[int]:
        """What need not run if it is cached: all before the last token, and before the first whose logits score."""
        end = len(self.tokens) - 1
        return self.tokens[: end if self.scoring is None else min(end, self.scoring.next - 1)]

    @property
    def output_len(self) -> int:
        return len(self.tokens) - self.prompt_len

    def finish_reason_after(self, token: int) -> FinishReason | None:
        """Whether `token`, just appended, ends the output."""
        if token in self.stop_ids and self.output_len > self.request.sampling.min_tokens:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None
