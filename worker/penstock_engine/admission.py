"""What submit() refuses, and what a request becomes when it does not."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING

from penstock_engine.errors import AlreadyFinished, InvalidRequest, InvalidSampling, PromptTooLong, RequestTooLarge
from penstock_engine.request import CLASS_RANK, FinishReason, Generation, Request, SamplingParams, Scoring

if TYPE_CHECKING:
    from penstock_engine.grammar import Grammars

Rule = tuple[str, bool, str]  # a field, whether it is as it must be, and what that is
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_CHOICES = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """What this engine can hold; all in tokens but `eos_ids`."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The choices of a request: those that are ready to wait, and how those ended that what was generated completes."""

    waiting: list[Generation]
    ended: dict[int, FinishReason]


def admitted(request: Request, limits: Limits, *, arrival: int, drawn_seed: int) -> Admitted:
    """The request's choices, once it is checked. Raises RequestRefused."""
    _check_ids(request, limits)
    _check_sampling(request.sampling, limits.vocab_size, limits.eos_ids)
    if request.reader is not None and request.scored_from is None:
        raise InvalidRequest("reader", "must be None without scored_from, which says what it is told")
    if request.scored_from is not None:
        return Admitted([_to_score(request, request.scored_from, limits, arrival=arrival)], {})
    if request.sampling.selects and request.sampling.logprobs is None:
        request = replace(request, sampling=replace(request.sampling, logprobs=0))
    choices = [
        _choice_of(request, limits, choice, arrival=arrival, drawn_seed=drawn_seed)
        for choice in range(request.sampling.choices)
        if choice not in request.closed
    ]
    ended = {each.choice: reason for each in choices if (reason := _reason_to_end(each)) is not None}
    if len(ended) == len(choices):
        raise AlreadyFinished(request.id, ended)
    waiting = [each for each in choices if each.choice not in ended]
    tops = request.sampling.prompt_logprobs
    if tops is not None and len(request.prompt_ids) > 1:
        waiting[0].scoring = Scoring(1, request.prompt_ids, tops)
    return Admitted(waiting, ended)


def _to_score(request: Request, start: int, limits: Limits, *, arrival: int) -> Generation:
    """The last token is only scored: what runs is one shorter."""
    tokens, sampling = request.prompt_ids, request.sampling
    if not 1 <= start < len(tokens):
        raise InvalidRequest(
            "scored_from", f"must be from 1 to {len(tokens) - 1}, the last of the {len(tokens)} tokens"
        )
    if sampling.choices != 1 or any(request.output_ids) or sampling.grammar is not None:
        raise InvalidRequest("scored_from", "must be None where n is above 1, or there are output_ids or a grammar")
    plain = SamplingParams(temperature=0, max_tokens=1, logprobs=None)
    generation = _choice_of(
        replace(request, prompt_ids=tokens[:-1], sampling=plain), limits, 0, arrival=arrival, drawn_seed=0
    )
    generation.scoring = Scoring(start, list(tokens), sampling.prompt_logprobs or 0, request.reader)
    return generation


def _choice_of(request: Request, limits: Limits, choice: int, *, arrival: int, drawn_seed: int) -> Generation:
    output = request.output_ids[choice] if choice < len(request.output_ids) else []
    sampling = request.sampling
    return Generation(
        request=request,
        choice=choice,
        arrival=arrival,
        tokens=[*request.prompt_ids, *output],
        prompt_len=len(request.prompt_ids),
        limit=_limit(request, limits),
        stop_ids=frozenset(
            sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *limits.eos_ids)
        ),
        seed=drawn_seed if sampling.seed is None else sampling.seed,
    )


def _reason_to_end(generation: Generation) -> FinishReason | None:
    """Why what was generated elsewhere is complete already, if it is."""
    return generation.finish_reason_after(generation.tokens[-1]) if generation.output_len else None


def _limit(request: Request, limits: Limits) -> int:
    """The length at which the generation ends: what was asked for, cut to the model's context."""
    prompt, wanted = len(request.prompt_ids), request.sampling.max_tokens
    if prompt >= limits.max_model_len:
        raise PromptTooLong(prompt, limits.max_model_len)
    if wanted is None:
        limit = min(limits.max_model_len, max(limits.pool_tokens, prompt + 1))
    else:
        limit = min(limits.max_model_len, prompt + wanted)
    limit = _affordable(request, limit)
    # The last token is never run through the model, so it needs no slot.
    if limit - 1 > limits.pool_tokens:
        raise RequestTooLarge(limit - 1, limits.pool_tokens)
    return limit


def _affordable(request: Request, limit: int) -> int:
    """`limit`, or the lower length at which the request's budget is used up."""
    if request.token_budget is None:
        return limit
    choices, prompt = request.sampling.choices, len(request.prompt_ids)
    share = (request.token_budget - prompt) // choices
    if share < 1:
        remedy = f"must be at least {prompt + choices}: the prompt, and a token for each choice"
        raise InvalidRequest("token_budget", remedy)
    return min(limit, prompt + share)


def _check_ids(request: Request, limits: Limits) -> None:
    if not request.id:
        raise InvalidRequest("id", "must not be empty")
    if request.request_class not in CLASS_RANK:
        raise InvalidRequest("request_class", f"must be one of {', '.join(CLASS_RANK)}")
    if not (isfinite(request.weight) and request.weight > 0):
        raise InvalidRequest("weight", "must be a number above 0")
    if request.deadline is not None and not isfinite(request.deadline):
        raise InvalidRequest("deadline", "must be seconds since the epoch, or None")
    if not request.prompt_ids:
        raise InvalidRequest("prompt_ids", "must hold at least one token")
    _check_output_ids(request)
    for field, ids in (("prompt_ids", request.prompt_ids), *(("output_ids", ids) for ids in request.output_ids)):
        check_tokens(field, ids, limits)


def check_tokens(field: str, ids: Sequence[int], limits: Limits) -> None:
    """Raises InvalidRequest, naming `field`, where one of `ids` is no token."""
    if ids and not 0 <= min(ids) <= max(ids) < limits.vocab_size:
        raise InvalidRequest(field, f"every token must be from 0 to {limits.vocab_size - 1}")


def _check_output_ids(request: Request) -> None:
    sampling = request.sampling
    if request.closed and (sampling.selects or not request.closed < set(range(sampling.choices))):
        remedy = f"must be some, not all, of the {sampling.choices} choices, and none where best_of is above n"
        raise InvalidRequest("closed", remedy)
    if sampling.selects and any(request.output_ids):
        raise InvalidRequest("output_ids", "must be empty where best_of is above n: no choice is told before all end")
    if len(request.output_ids) > max(1, sampling.choices):
        raise InvalidRequest("output_ids", f"must hold at most one list for each of the {sampling.choices} choices")


def _check_sampling(sampling: SamplingParams, vocab_size: int, eos_ids: Sequence[int]) -> None:
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if isinstance(value, float) and not isfinite(value):
            raise InvalidSampling(field.name, "must be a finite number")
    temperature, seed = sampling.temperature, sampling.seed
    prompt = sampling.prompt_logprobs
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    most, least, logprobs = sampling.max_tokens, sampling.min_tokens, sampling.logprobs
    stops_known = all(0 <= each < vocab_size for each in sampling.stop_token_ids)
    rules: tuple[Rule, ...] = (
        ("temperature", temperature == 0 or 0.001 <= temperature <= 100, "must be 0 (greedy) or 0.001 to 100"),
        ("top_k", sampling.top_k >= 0, "must be 0 (keep all) or the number of tokens to keep"),
        ("top_p", 0 < sampling.top_p <= 1, "must be above 0 and at most 1"),
        ("min_p", 0 <= sampling.min_p <= 1, "must be from 0 (keep all) to 1"),
        ("repetition_penalty", 0 < sampling.repetition_penalty <= 100, "must be above 0 and at most 100"),
        ("presence_penalty", -2 <= presence <= 2, "must be from -2 to 2"),
        ("frequency_penalty", -2 <= frequency <= 2, "must be from -2 to 2"),
        ("logit_bias", _bias_holds(sampling, vocab_size), _BIAS_RULE.format(most=MAX_LOGIT_BIAS, last=vocab_size - 1)),
        ("prompt_logprobs", prompt is None or 0 <= prompt <= MAX_LOGPROBS, f"must be 0 to {MAX_LOGPROBS}, or None"),
        ("n", 1 <= sampling.n <= MAX_CHOICES, f"must be from 1 to {MAX_CHOICES}"),
        ("best_of", sampling.n <= sampling.choices <= MAX_CHOICES, f"must be from n to {MAX_CHOICES}, or None"),
        ("seed", seed is None or 0 <= seed < 2**64, "must be from 0 to 2**64 - 1, or None"),
        ("max_tokens", most is None or most >= 1, "must be at least 1, or None"),
        ("min_tokens", least >= 0 and (most is None or least <= most), "must be from 0 to max_tokens"),
        ("stop_token_ids", stops_known, f"must be from 0 to {vocab_size - 1}"),
        ("logprobs", logprobs is None or 0 <= logprobs <= MAX_LOGPROBS, f"must be 0 to {MAX_LOGPROBS}, or None"),
    )
    if sampling.grammar is not None:
        rules += _grammar_rules(sampling, eos_ids)
    for name, holds, remedy in rules:
        if not holds:
            raise InvalidSampling(name, remedy)


def _grammar_rules(sampling: SamplingParams, eos_ids: Sequence[int]) -> tuple[Rule, ...]:
    """The grammar says when the output may end, and the end of sequence that it has."""
    return (
        ("grammar", bool(eos_ids), "must be None: this model has no end of sequence to complete it with"),
        ("ignore_eos", not sampling.ignore_eos, "must be False with a grammar, whose end is the end of sequence"),
        ("min_tokens", not sampling.min_tokens, "must be 0 with a grammar, which says when the output may end"),
    )


_BIAS_RULE = "must be at most {most} pairs of a token from 0 to {last}, each once, and a number from -100 to 100"


def _bias_holds(sampling: SamplingParams, vocab_size: int) -> bool:
    bias = sampling.logit_bias
    ids = {token for token, _ in bias}
    in_range = all(0 <= token < vocab_size and -100 <= value <= 100 for token, value in bias)
    return in_range and len(ids) == len(bias) <= MAX_LOGIT_BIAS


def grammars_for(tokenizer: str | None, limits: Limits) -> "Grammars":
    """What compiles grammars, imported only now: an engine without them needs no such package."""
    if tokenizer is None:
        raise InvalidSampling("grammar", "must be None: this engine was set up without a tokenizer")
    try:
        from penstock_engine.grammar import Grammars
    except ImportError as missing:
        raise InvalidSampling("grammar", "must be None where the package llguidance is not installed") from missing
    return Grammars(tokenizer, limits.vocab_size, limits.eos_ids)
