"""Several choices of one prompt: each as if asked for alone, the prompt computed once, the request ending as one."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from penstock_engine import (
    AlreadyFinished,
    Engine,
    EngineConfig,
    InvalidRequest,
    Request,
    RequestFailure,
    SamplingParams,
    TokenDelta,
)
from penstock_engine.philox import uniforms
from scipy.stats import chisquare  # type: ignore[import-untyped]  # scipy ships no types

from tests.engine.driving import Run, check_pages
from tests.engine.tiny import TinyModel, random_prompt


class Choices:
    """The deltas of a run, by request and choice."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.deltas: dict[tuple[str, int], list[TokenDelta]] = {}
        self.failed: list[RequestFailure] = []
        self.admitted: list[tuple[str, int]] = []
        self.engine = engine
        for request in requests:
            engine.submit(request)

    def step(self) -> None:
        output = self.engine.step()
        for delta in output.deltas:
            before = self.deltas.setdefault((delta.request_id, delta.choice), [])
            assert not before or delta.position == before[-1].position + 1
            assert not before or before[-1].finish_reason is None
            before.append(delta)
        self.failed += output.failed
        self.admitted += output.admitted
        check_pages(self.engine._scheduler, self.engine._allocator, self.engine._cache)

    def run(self) -> "Choices":
        while self.engine.has_work:
            self.step()
        assert self.engine.stats().pages_in_use == 0
        return self

    def tokens(self, request_id: str) -> list[list[int]]:
        keys = sorted(key for key in self.deltas if key[0] == request_id)
        assert [choice for _, choice in keys] == list(range(len(keys)))
        return [[delta.token_id for delta in self.deltas[key]] for key in keys]


def engine_of(model: TinyModel, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", **others))


def sampled(max_tokens: int = 20, **others: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.9, "seed": 5, "max_tokens": max_tokens, "ignore_eos": True, **others})


def test_each_choice_draws_with_noise_of_its_own(llama: TinyModel) -> None:
    """Position and choice name the noise; the first choice is what a request for one would have got."""
    prompt = random_prompt(37, seed=1)
    several = Choices(engine_of(llama), [Request("x", prompt, sampled(n=4))]).run().tokens("x")
    alone = Choices(engine_of(llama), [Request("x", prompt, sampled())]).run().tokens("x")
    assert several[0] == alone[0]
    assert len({tuple(tokens) for tokens in several}) == 4
    for choice, tokens in enumerate(several):
        for position in (0, 7):
            row = llama.logprobs([*prompt, *tokens])[len(prompt) - 1 + position].double() / 0.9
            cdf = row.softmax(-1).cumsum(-1)
            noise = float(uniforms(np.array([5], np.uint64), np.array([position]), np.array([choice], np.uint32))[0])
            assert float(cdf[tokens[position]]) > noise - 1e-4
            assert tokens[position] == 0 or float(cdf[tokens[position] - 1]) < noise + 1e-4


@pytest.mark.parametrize("config", [{}, {"max_running": 5, "kv_pages": 9, "token_budget": 16}, {"prefix_cache": False}])
def test_choices_survive_chunks_preemption_and_company(llama: TinyModel, config: dict[str, Any]) -> None:
    prompt = random_prompt(37, seed=1)
    undisturbed = Choices(engine_of(llama), [Request("x", prompt, sampled(n=4))]).run().tokens("x")
    others = [Request(f"n{n}", random_prompt(20 + n, seed=n), sampled(n=2)) for n in range(3)]
    engine = engine_of(llama, **config)
    run = Choices(engine, [*others, Request("x", prompt, sampled(n=4))]).run()
    assert run.tokens("x") == undisturbed
    assert Counter(name for name, _ in run.admitted) == Counter(["n0", "n1", "n2", "x"])
    assert (engine.stats().preemptions > 0) == ("kv_pages" in config)


@pytest.mark.parametrize("budget", [512, 59, 17])  # the last two end the prompt with a step's very last token
@pytest.mark.parametrize("length", [7, 48, 118])  # within a page, three pages, in the middle of one
def test_the_prompt_is_computed_once_to_the_last_token(llama: TinyModel, length: int, budget: int) -> None:
    """The choices share the logits of its last token too, so none of them runs a token of it again."""
    engine = engine_of(llama, max_running=8, token_budget=budget)
    prompt = random_prompt(length, seed=1)
    several = Choices(engine, [Request("x", prompt, sampled(10, n=8))]).run()
    stats = engine.stats()
    assert stats.tokens_cached == 7 * length
    assert stats.tokens_computed == length + 8 * 9  # the last one is never run
    alone = Choices(engine_of(llama), [Request("x", prompt, sampled(10))]).run()
    assert several.tokens("x")[0] == alone.tokens("x")[0]


def test_each_choice_resumes_where_it_was(llama: TinyModel) -> None:
    prompt = random_prompt(37, seed=1)
    whole = Choices(engine_of(llama), [Request("x", prompt, sampled(n=4))]).run().tokens("x")
    known = [whole[0][:3], whole[1], [], whole[3][:19]]  # the second one has ended
    engine = engine_of(llama)
    assert engine.submit(Request("x", prompt, sampled(n=4), output_ids=known)) == {1: "length"}
    run = Choices(engine, []).run()
    got = {choice: [delta.token_id for delta in deltas] for (_, choice), deltas in run.deltas.items()}
    assert got == {0: whole[0][3:], 2: whole[2], 3: whole[3][19:]}
    with pytest.raises(AlreadyFinished):
        engine_of(llama).submit(Request("x", prompt, sampled(n=2), output_ids=whole[:2]))


def test_first_tokens_of_many_choices_follow_the_distribution(llama: TinyModel) -> None:
    prompt = random_prompt(6, seed=2)
    requests = [
        Request(str(seed), prompt, sampled(1, n=100, seed=seed, temperature=1.5, top_k=8)) for seed in range(15)
    ]
    run = Choices(engine_of(llama), requests).run()
    tokens = [deltas[0].token_id for deltas in run.deltas.values()]
    scores = llama.logprobs(prompt)[-1] / 1.5
    scores[scores < scores.topk(8).values[-1]] = -torch.inf
    probabilities = scores.double().softmax(-1).numpy()
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert len(tokens) == 1500
    assert counts[probabilities == 0].sum() == 0
    possible = probabilities > 0
    assert chisquare(counts[possible], probabilities[possible] * 1500).pvalue > 1e-3


class TestBestOf:
    """More are generated than told."""

    @pytest.mark.parametrize("logprobs", [0, None])
    def test_the_likeliest_are_told_best_first_once_all_have_ended(
        self, llama: TinyModel, logprobs: int | None
    ) -> None:
        prompt = random_prompt(20, seed=4)
        every = Choices(engine_of(llama), [Request("x", prompt, sampled(n=5))]).run()
        totals = {choice: sum(d.logprob or 0 for d in deltas) for (_, choice), deltas in every.deltas.items()}
        best = sorted(totals, key=totals.__getitem__, reverse=True)[:2]

        run = Choices(engine_of(llama), [Request("x", prompt, sampled(n=2, best_of=5, logprobs=logprobs))])
        while run.engine.has_work:
            assert not run.deltas
            run.step()
        assert run.tokens("x") == [every.tokens("x")[choice] for choice in best]
        assert all((delta.logprob is None) == (logprobs is None) for each in run.deltas.values() for delta in each)
        assert [each[-1].finish_reason for each in run.deltas.values()] == ["length"] * 2


def test_abort_ends_every_choice(llama: TinyModel) -> None:
    engine = engine_of(llama, max_running=2)
    run = Choices(engine, [Request("x", random_prompt(20, seed=1), sampled(n=4))])
    for _ in range(3):
        run.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 2)
    assert engine.abort("x")
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_in_use, engine.has_work) == (0, 0, 0, False)


def test_a_choice_that_is_dropped_leaves_the_others_undisturbed(llama: TinyModel) -> None:
    prompt = random_prompt(37, seed=1)
    whole = Choices(engine_of(llama), [Request("x", prompt, sampled(n=3))]).run().tokens("x")
    engine = engine_of(llama)
    run = Choices(engine, [Request("x", prompt, sampled(n=3))])
    for _ in range(5):
        run.step()
    assert engine.abort("x", 1)
    assert not engine.abort("x", 1)
    assert not engine.abort("unknown", 0)
    assert engine.stats().running == 2
    run.run()
    assert run.tokens("x") == [whole[0], whole[1][:5], whole[2]]


def test_a_request_ends_with_the_last_choice_that_is_dropped(llama: TinyModel) -> None:
    engine = engine_of(llama, max_running=1)
    run = Choices(engine, [Request("x", random_prompt(9, seed=1), sampled(n=2))])
    run.step()
    assert engine.abort("x", 1)  # which waits
    assert engine.has_work
    assert engine.abort("x", 0)
    assert not engine.has_work
    run.step()
    assert engine.stats().pages_in_use == 0


def test_choices_that_the_caller_has_ended_do_not_go_on(llama: TinyModel) -> None:
    prompt = random_prompt(37, seed=1)
    whole = Choices(engine_of(llama), [Request("x", prompt, sampled(n=3))]).run().tokens("x")
    known = [whole[0][:4], whole[1][:2], whole[2][:4]]
    request = Request("x", prompt, sampled(n=3, prompt_logprobs=0), output_ids=known, closed=frozenset({0, 2}))
    engine = engine_of(llama)
    engine.submit(request)
    scores, tokens = 0, []
    while engine.has_work:
        output = engine.step()
        scores += len(output.prompt_logprobs)
        tokens += [(delta.choice, delta.token_id) for delta in output.deltas]
    assert tokens == [(1, token) for token in whole[1][2:]]
    assert scores == 1


@pytest.mark.parametrize(("closed", "sampling"), [({0, 1}, {"n": 2}), ({2}, {"n": 2}), ({0}, {"n": 1, "best_of": 2})])
def test_some_choice_must_be_left_open(llama: TinyModel, closed: set[int], sampling: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="some, not all") as refusal:
        engine_of(llama).submit(Request("x", [1, 2], sampled(**sampling), closed=frozenset(closed)))
    assert refusal.value.field == "closed"


def test_choices_that_are_held_cannot_be_dropped_alone(llama: TinyModel) -> None:
    engine = engine_of(llama)
    run = Choices(engine, [Request("x", random_prompt(9, seed=1), sampled(n=1, best_of=3))])
    run.step()
    with pytest.raises(InvalidRequest, match="end together"):
        engine.abort("x", 1)
    assert len(run.run().tokens("x")) == 1


def test_a_choice_that_fails_takes_its_request_along_and_nobody_else(llama: TinyModel) -> None:
    """The model's answer to one choice turns to NaN in the middle of its output."""
    engine = engine_of(llama, max_running=4)
    other = Request("other", random_prompt(9, seed=2), sampled())
    run = Choices(engine, [Request("x", random_prompt(20, seed=1), sampled(n=4)), other])
    for _ in range(5):
        run.step()
    forward = engine._runner._model

    def poisoned(batch: Any) -> torch.Tensor:
        logits: torch.Tensor = forward(batch)
        at = [each.request.id for each in engine._scheduler.running].index("x")
        logits[at] = torch.nan
        return logits

    engine._runner._model = poisoned  # type: ignore[assignment]
    told = Run(deltas={"x": list(run.deltas["x", 0])})
    run.step()
    engine._runner._model = forward
    assert [(failure.request_id, failure.code) for failure in run.failed] == [("x", "logits_not_finite")]
    assert run.deltas["x", 0] == told.deltas["x"]
    assert {each.request.id for each in engine._scheduler.running} | {
        each.request.id for each in engine._scheduler.waiting
    } == {"other"}
    run.run()
    assert [each.request_id for each in run.failed] == ["x"]
    expected = Choices(engine_of(llama), [other]).run()
    assert run.tokens("other") == expected.tokens("other")
