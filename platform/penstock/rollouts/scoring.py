"""How far two versions are apart on an answer that one of them gave: teacher-forced, token by token.

Both were shown the same prompt and answer and told, at each of the answer's positions, the likelihood of the token that
is there and the likeliest tokens in its place. Nobody generates anything. All log probabilities are natural ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from pydantic import TypeAdapter

from penstock.jobs.journal import PromptToken

SHOWN: Final = 5
"""How many of the likeliest tokens are kept of the position where versions part."""
_NONE: Final = 1e-12  # where a probability is none, as far as rounding can tell


@dataclass(frozen=True, slots=True)
class Likely:
    """A token, and how likely a version finds it."""

    token_id: int
    probability: float


@dataclass(frozen=True, slots=True)
class Parting:
    """A position of the answer, counted from 0, and what each version finds likeliest there, the likeliest first."""

    position: int
    token_id: int
    """What stands there."""
    probability: float
    """How likely the candidate finds that."""
    kld: float
    reference: tuple[Likely, ...]
    candidate: tuple[Likely, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer's figures, over all of its tokens."""

    tokens: int
    mean_kld: float
    """Divergence of the candidate's next-token distribution from the reference's, at least: see `kld_at_least`."""
    largest_kld: float
    disagreement: float
    """Part of the tokens at which the versions' first choices differ."""
    mean_rank: float
    """Of the answer's token among the candidate's choices, from 1; one beyond those that were told counts as next."""
    logprob_difference: float
    """The candidate's mean log probability of a token less the reference's: below 0 it finds the answer less likely."""
    parting: Parting | None
    """The first position at which the first choices differ."""
    worst: Parting
    """The position of the largest divergence."""


SCORED: Final = TypeAdapter(Scored)


class Unscored(Exception):
    """Two scores that cannot be compared; the message says why."""


def compare(reference: Sequence[PromptToken], candidate: Sequence[PromptToken], answer: Sequence[int]) -> Scored:
    """The figures of an answer, from both versions' scores of the whole text, whose end it is. Raises `Unscored`."""
    ids = [token.token_id for token in reference]
    if ids != [token.token_id for token in candidate]:
        raise Unscored("the versions put the prompt into different tokens")
    if not answer or ids[-len(answer) :] != list(answer):
        raise Unscored("what was scored does not end with the answer")
    places = list(zip(reference[-len(answer) :], candidate[-len(answer) :], strict=True))
    if any(one.logprob is None or other.logprob is None for one, other in places):
        raise Unscored("a token of the answer was not scored")
    divergences = [
        kld_at_least(_distribution(one), _distribution(other), least=other.top_logprobs[-1][1]) for one, other in places
    ]
    parted = [place for place, (one, other) in enumerate(places) if _first(one) != _first(other)]
    worst = max(range(len(places)), key=divergences.__getitem__)
    return Scored(
        tokens=len(places),
        mean_kld=fmean(divergences),
        largest_kld=divergences[worst],
        disagreement=len(parted) / len(places),
        mean_rank=fmean(_rank(other) for _, other in places),
        logprob_difference=fmean((other.logprob or 0.0) - (one.logprob or 0.0) for one, other in places),
        parting=_parting(parted[0], places, divergences) if parted else None,
        worst=_parting(worst, places, divergences),
    )


def kld_at_least(reference: Mapping[int, float], candidate: Mapping[int, float], *, least: float) -> float:
    """The least that the KL divergence of `candidate` from `reference` can be, in nats, given some log probabilities.

    `least` is that of the last of the candidate's likeliest: no token that it does not tell is likelier.

    Tokens that both tell are cells of their own. What the reference tells and the candidate does not is one cell, and
    the rest of the vocabulary another; merging tokens never raises the divergence (the log-sum inequality; Cover and
    Thomas, Elements of Information Theory, theorem 2.7.1), so that of the cells is a lower bound. How the candidate's
    untold mass falls into the last two cells is not known but for `least`: of all ways the one is taken that gives the
    least divergence.
    """
    shared = reference.keys() & candidate.keys()
    own = [math.exp(reference[token]) for token in reference.keys() - shared]
    told = sum(math.exp(reference[token]) * (reference[token] - candidate[token]) for token in shared)
    of_reference = max(1 - sum(math.exp(reference[token]) for token in shared), 0.0)
    of_candidate = max(1 - sum(math.exp(candidate[token]) for token in shared), 0.0)
    cell, rest = sum(own), max(of_reference - sum(own), 0.0)
    beyond = max(1 - sum(map(math.exp, candidate.values())), 0.0)
    most = min(len(own) * math.exp(least), beyond, of_candidate)
    even = of_candidate * cell / of_reference if of_reference > _NONE else 0.0
    mass = min(most, even)
    return max(told + _part(cell, mass) + _part(rest, of_candidate - mass), 0.0)


def _part(mass: float, other: float) -> float:
    """A cell's part of a divergence. Where the other version's mass is lost in rounding, that counts as its least."""
    return mass * math.log(mass / max(other, _NONE)) if mass > _NONE else 0.0


def _distribution(place: PromptToken) -> dict[int, float]:
    told = dict(place.top_logprobs)
    return told if place.logprob is None else told | {place.token_id: place.logprob}


def _first(place: PromptToken) -> int:
    return place.top_logprobs[0][0]


def _rank(place: PromptToken) -> int:
    ids = [token for token, _ in place.top_logprobs]
    return ids.index(place.token_id) + 1 if place.token_id in ids else len(ids) + 1


def _parting(position: int, places: Sequence[tuple[PromptToken, PromptToken]], divergences: Sequence[float]) -> Parting:
    one, other = places[position]
    probability = math.exp(other.logprob or 0.0)
    return Parting(
        position, one.token_id, round(probability, 6), divergences[position], _likeliest(one), _likeliest(other)
    )


def _likeliest(place: PromptToken) -> tuple[Likely, ...]:
    return tuple(Likely(token, round(math.exp(logprob), 6)) for token, logprob in place.top_logprobs[:SHOWN])


def scored_document(scored: Scored) -> dict[str, Any]:
    """As a row keeps it; `SCORED.validate_python` reads it again."""
    document: dict[str, Any] = SCORED.dump_python(scored, mode="json")
    return document
