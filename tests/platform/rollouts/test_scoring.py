"""Two versions' scores of an answer: what is known exactly, and what can only be bounded."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.jobs.journal import PromptToken
from penstock.rollouts.scoring import SCORED, Unscored, compare, kld_at_least, scored_document

VOCABULARY, TOPS = 40, 20


def top(distribution: np.ndarray, chosen: int | None = None) -> dict[int, float]:
    """The log probabilities that an engine tells: of the likeliest, and of the token that is there."""
    likeliest = [int(token) for token in np.argsort(-distribution, kind="stable")[:TOPS]]
    told = [*likeliest, *([] if chosen is None else [chosen])]
    return {token: math.log(distribution[token]) for token in told}


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum(one * np.log(one / other)))


def bound(one: np.ndarray, other: np.ndarray, chosen: int) -> float:
    least = min(top(other).values())
    return kld_at_least(top(one, chosen), top(other, chosen), least=least)


def drawn(seed: int, spread: float) -> np.ndarray:
    weights = np.exp(np.random.default_rng(seed).normal(0, spread, VOCABULARY))
    whole: np.ndarray = weights / weights.sum()
    return whole


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.1, 6), st.integers(0, VOCABULARY - 1))
def test_the_bound_is_never_above_the_divergence(one: int, other: int, spread: float, chosen: int) -> None:
    reference, candidate = drawn(one, spread), drawn(other, spread)
    assert 0 <= bound(reference, candidate, chosen) <= divergence(reference, candidate) + 1e-9


def test_the_bound_is_near_the_divergence_of_a_version_that_is_a_little_off() -> None:
    reference = drawn(1, 3)
    candidate = np.exp(np.log(reference) + np.random.default_rng(2).normal(0, 0.1, VOCABULARY))
    candidate /= candidate.sum()
    whole = divergence(reference, candidate)
    assert 0.8 * whole < bound(reference, candidate, 0) <= whole
    assert bound(reference, reference, 0) == pytest.approx(0, abs=1e-9)


def test_versions_that_have_nothing_in_common_are_far_apart() -> None:
    """Cells that only one of them tells must not vanish in one tail."""
    reference, candidate = np.full(2 * TOPS, 1e-6), np.full(2 * TOPS, 1e-6)
    reference[:TOPS], candidate[TOPS:] = 1 / TOPS, 1 / TOPS
    reference, candidate = reference / reference.sum(), candidate / candidate.sum()
    assert divergence(reference, candidate) > 10
    assert bound(reference, candidate, 0) > 5


def places(answer: list[int], *likely: Mapping[int, float], prompt: tuple[int, ...] = (1, 2)) -> list[PromptToken]:
    told = [PromptToken(token, None) for token in prompt]
    for token, probabilities in zip(answer, likely, strict=True):
        tops = sorted(probabilities.items(), key=lambda each: -each[1])
        likeliest = tuple((each, math.log(p)) for each, p in tops)
        told.append(PromptToken(token, math.log(probabilities[token]), likeliest))
    return told


def test_an_answers_figures() -> None:
    sure, unsure = {5: 0.75, 6: 0.25}, {6: 0.75, 5: 0.25}
    scored = compare(places([5, 5], sure, sure), places([5, 5], sure, unsure), [5, 5])
    kld = 0.5 * math.log(3)
    assert scored.tokens == 2
    assert scored.mean_kld == pytest.approx(kld / 2)
    assert scored.largest_kld == pytest.approx(kld)
    assert scored.disagreement == 0.5
    assert scored.mean_rank == 1.5
    assert scored.logprob_difference == pytest.approx(-math.log(3) / 2)
    assert scored.parting is not None
    assert scored.parting == scored.worst
    assert (scored.parting.position, scored.parting.token_id) == (1, 5)
    assert [each.token_id for each in scored.parting.reference] == [5, 6]
    assert [each.probability for each in scored.parting.candidate] == [0.75, 0.25]
    assert SCORED.validate_python(scored_document(scored), strict=False) == scored


def test_versions_that_agree_do_not_part() -> None:
    sure = {5: 0.75, 6: 0.25}
    scored = compare(places([6], sure), places([6], sure), [6])
    assert (scored.parting, scored.disagreement, scored.mean_kld, scored.mean_rank) == (None, 0, 0, 2)


def test_what_does_not_belong_together_is_not_compared() -> None:
    sure = {5: 0.75, 6: 0.25}
    mine = places([5], sure)
    with pytest.raises(Unscored, match="different tokens"):
        compare(mine, places([5], sure, prompt=(1, 3)), [5])
    with pytest.raises(Unscored, match="does not end with the answer"):
        compare(mine, mine, [6])
    with pytest.raises(Unscored, match="was not scored"):
        compare(mine, mine, [2, 5])
