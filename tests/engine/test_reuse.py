"""What is copied or shared is exactly what would have been computed, and nothing shared is computed twice."""

from typing import Any

import pytest
from penstock_engine import Engine, EngineConfig, Request, SamplingParams, TokenDelta

from tests.engine.driving import greedy, parity, run_all
from tests.engine.tiny import VOCABULARY, TinyModel, random_prompt

STEM = 37  # two pages and five tokens


def engine_of(model: TinyModel, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(**{"dtype": "float32", "max_running": 16, **others}))


def jobs(count: int, tail: int) -> list[Request]:
    """They share STEM tokens and no more."""
    stem = random_prompt(STEM, seed=1)
    tails = ([at, *random_prompt(tail - 1, seed=at)] for at in range(count))
    return [Request(str(at), stem + own, greedy(12)) for at, own in enumerate(tails)]


@pytest.mark.parametrize("budget", [64, 512])
@pytest.mark.parametrize("tail", [1, 3, 11, 20])  # up to ten, the page of the stem's end stays the leader's own
def test_a_shared_beginning_is_computed_once_and_read_right(llama: TinyModel, tail: int, budget: int) -> None:
    engine = engine_of(llama, token_budget=budget)
    requests = jobs(24, tail)
    run = run_all(engine, requests)
    found = parity(llama, requests, run)
    assert (found.tokens, found.wrong, found.worst_logprob < 1e-4) == (24 * 12, 0, True)
    assert engine.stats().tokens_computed == STEM + 24 * tail + 24 * 11


def test_a_split_within_a_page_in_the_middle_of_the_tree_is_copied(llama: TinyModel) -> None:
    """The first prompt has gone; the others leave it within its second page, each at another token."""
    first = random_prompt(60, seed=2)
    branches = [
        Request(str(at), [*first[:at], (first[at] + 1) % VOCABULARY, 5, 5], greedy(12)) for at in (17, 20, 21, 31)
    ]
    engine = engine_of(llama)
    run_all(engine, [Request("first", first, greedy(2))])
    before = engine.stats().tokens_computed
    run = run_all(engine, branches)
    assert parity(llama, branches, run).wrong == 0
    assert engine.stats().tokens_computed - before == 4 * (3 + 11)


def told(engine: Engine, request: Request) -> list[TokenDelta]:
    engine.submit(request)
    deltas: list[TokenDelta] = []
    while engine.has_work:
        deltas += [each for each in engine.step().deltas if each.request_id == request.id]
    return deltas


def test_shared_logits_are_ones_own_to_the_bit(llama: TinyModel) -> None:
    """In the determinism lane a twin's tokens and log probabilities are those of one who runs alone."""
    prompt = random_prompt(STEM, seed=3)
    engine = engine_of(llama, deterministic=True)
    for at in range(3):
        engine.submit(Request(f"same-{at}", prompt, SamplingParams(seed=at, max_tokens=9)))
    request = Request("x", prompt, SamplingParams(seed=7, max_tokens=12, ignore_eos=True, logprobs=2))
    beside = told(engine, request)
    assert engine.stats().tokens_cached == 3 * STEM
    assert beside == told(engine_of(llama, deterministic=True), request)
