"""Log probabilities of given tokens equal those of `transformers`, whatever came from the cache or in chunks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_engine import (
    Engine,
    EngineBusy,
    EngineConfig,
    InvalidRequest,
    PromptLogprobs,
    PromptTooLong,
    Request,
    ScoringFailed,
)
from penstock_engine.scoring import ROWS_AT_ONCE
from penstock_kernels.cpu import support

from tests.engine.driving import Run, check_pages, greedy, parity, run_all, step_once
from tests.engine.tiny import VOCABULARY, TinyModel, random_prompt


def engine_of(model: TinyModel, **others: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(dtype="float32", **others))


def reference(model: TinyModel, tokens: list[int], start: int) -> list[float]:
    rows = model.logprobs(tokens)[start - 1 : -1]
    found: list[float] = rows.gather(-1, torch.tensor(tokens[start:]).unsqueeze(-1)).squeeze(-1).tolist()
    return found


def close(values: list[float]) -> Any:
    return pytest.approx(values, abs=1e-4)


def outputs(engine: Engine, requests: list[Request]) -> tuple[dict[str, PromptLogprobs], Run]:
    for request in requests:
        engine.submit(request)
    scored: dict[str, PromptLogprobs] = {}
    run = Run()
    step = engine.step

    def watched() -> Any:
        output = step()
        for each in output.prompt_logprobs:
            assert each.request_id not in scored
            scored[each.request_id] = each
        return output

    engine.step = watched  # type: ignore[method-assign]
    while engine.has_work:
        step_once(engine, run)
    engine.step = step  # type: ignore[method-assign]
    return scored, run


@pytest.mark.parametrize("length", [2, 3, 16, 17, 33, 150, 256])
def test_scores_are_the_references(llama: TinyModel, length: int) -> None:
    """Up to the whole context, in chunks of at most 16."""
    tokens = random_prompt(length, seed=length)
    engine = engine_of(llama, token_budget=16, max_running=4)
    assert engine.score(tokens) == close(reference(llama, tokens, 1))
    assert engine.stats().pages_in_use == 0
    assert not engine.has_work


@settings(deadline=None, max_examples=20)
@given(
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(2, 60), st.integers(1, 59)), min_size=1, max_size=6),
    budget=st.sampled_from([4, 16, 64]),
)
def test_scores_do_not_depend_on_what_is_cached(
    llama: TinyModel, calls: list[tuple[int, int, int]], budget: int
) -> None:
    engine = engine_of(llama, token_budget=budget, max_running=2, kv_pages=6)
    for stem, length, wanted in calls:
        tokens = random_prompt(60, seed=stem)[:length]
        start = min(wanted, length - 1)
        assert engine.score(tokens, start) == close(reference(llama, tokens, start))
        check_pages(engine._scheduler, engine._allocator, engine._cache)


def test_the_cache_is_used_up_to_the_token_before_start(llama: TinyModel) -> None:
    engine, tokens = engine_of(llama), random_prompt(80, seed=1)
    engine.score(tokens)
    for start, cached in [(1, 0), (2, 1), (17, 16), (40, 39), (79, 78)]:
        before = engine.stats()
        assert len(engine.score(tokens, start)) == 80 - start
        after = engine.stats()
        assert after.tokens_cached - before.tokens_cached == min(cached, 64)
        assert after.tokens_computed - before.tokens_computed == 79 - min(cached, 64)


def test_requests_that_only_score_run_among_others(llama: TinyModel) -> None:
    """From a token on, up to the whole context, in chunks, with tops; each tells one token, which means nothing."""
    engine = engine_of(llama, token_budget=16, max_running=4)
    tokens = {f"s{length}": random_prompt(length, seed=length) for length in (2, 40, 256)}
    starts = {"s2": 1, "s40": 30, "s256": 1}
    tops = greedy(1, prompt_logprobs=2)
    scores = [Request(name, ids, tops, scored_from=starts[name]) for name, ids in tokens.items()]
    scored, run = outputs(engine, [*scores, Request("g", random_prompt(9, seed=2), greedy(5))])

    for name, ids in tokens.items():
        assert (scored[name].start, scored[name].logprobs) == (starts[name], close(reference(llama, ids, starts[name])))
        assert {len(likeliest) for likeliest in scored[name].top_logprobs} == {2}
        assert len(run.tokens(name)) == 1
    assert len(run.tokens("g")) == 5


@pytest.mark.parametrize(
    ("start", "others"),
    [(0, {}), (4, {}), (1, {"sampling": greedy(1, n=2)}), (1, {"output_ids": [[5]]})],
)
def test_a_request_that_only_scores_has_something_to_score_and_no_more(
    llama: TinyModel, start: int, others: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="scored_from"):
        engine_of(llama).submit(Request("s", [5, 6, 7, 8], scored_from=start, **others))


def test_who_only_scores_is_sampled_no_token(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears of it; beside others, whose tokens are awaited, it is."""
    engine, tokens = engine_of(llama), random_prompt(40, seed=3)
    sampled: list[list[str]] = []
    choose = engine._runner._sampler.choose

    def watched(logits: torch.Tensor, generations: list[Any], masks: Any) -> Any:
        sampled.append(sorted(each.request.id for each in generations))
        return choose(logits, generations, masks)

    monkeypatch.setattr(engine._runner._sampler, "choose", watched)
    requests = [Request(name, tokens, greedy(1, prompt_logprobs=20), scored_from=20) for name in ("s", "t")]
    assert outputs(engine, requests)[0]["s"].logprobs == close(reference(llama, tokens, 20))
    assert sampled == []
    outputs(engine, [Request("g", [1, 2, 3], greedy(1)), requests[0]])
    assert sampled == [["g", "s"]]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_the_likeliest_are_the_references_by_either_kernel(llama: TinyModel, kernels: Any) -> None:
    """Twenty in the place of each token, as a shadow asks for."""
    engine, tokens = engine_of(llama, kernels=kernels), random_prompt(90, seed=4)
    compiled = kernels == "auto" and not support.lacking()
    assert engine.kernels["scores"] == ("compiled for AVX-512" if compiled else "torch")
    scored, _ = outputs(engine, [Request("s", tokens, greedy(1, prompt_logprobs=20), scored_from=30)])
    assert scored["s"].logprobs == close(reference(llama, tokens, 30))
    for told, row in zip(scored["s"].top_logprobs, llama.logprobs(tokens)[29:-1], strict=True):
        values, ids = row.topk(20)
        assert [token for token, _ in told] == ids.tolist()
        assert [value for _, value in told] == close(values.tolist())


def test_prompts_are_scored_beside_generation(llama: TinyModel) -> None:
    """In chunks, preempted, some prompts cached: each prompt scored once, each output as it would have been."""
    engine = engine_of(llama, token_budget=16, max_running=5, kv_pages=9)
    stem = random_prompt(41, seed=9)
    prompts = [stem, stem[:37], [5], random_prompt(70, seed=3), [*stem, 3, 3], stem, random_prompt(2, seed=4)]
    requests = [
        Request(str(at), prompt, greedy(25, prompt_logprobs=None if at == 1 else at % 3))
        for at, prompt in enumerate(prompts)
    ]
    scored, run = outputs(engine, requests)
    assert engine.stats().preemptions > 0
    assert parity(llama, requests, run).wrong == 0
    assert set(scored) == {"0", "3", "4", "5", "6"}  # a single token has nothing before it
    for name, found in scored.items():
        prompt, tops = prompts[int(name)], int(name) % 3
        assert (found.start, found.logprobs) == (1, close(reference(llama, prompt, 1)))
        for told, row in zip(found.top_logprobs, llama.logprobs(prompt)[:-1], strict=True):
            values, ids = row.topk(tops)
            assert [token for token, _ in told] == ids.tolist()
            assert [value for _, value in told] == close(values.tolist())


class Heard:
    """Distributions as a reader is told them."""

    def __init__(self, length: int) -> None:
        self.rows = torch.full((length, VOCABULARY), torch.nan)
        self.pieces: list[tuple[int, int]] = []

    def __call__(self, position: int, logprobs: torch.Tensor) -> None:
        self.rows[position : position + len(logprobs)] = logprobs
        self.pieces.append((position, len(logprobs)))


def test_whole_distributions_are_read_in_pieces_among_other_requests(llama: TinyModel) -> None:
    """In chunks, behind cached tokens, preempted: each position once, in order, never many rows at a time."""
    engine = engine_of(llama, token_budget=40, max_running=5, kv_pages=20)
    stem = random_prompt(200, seed=5)
    wanted = {"a": (stem, 1), "b": (stem[:150], 120), "c": (random_prompt(256, seed=6), 7), "d": (stem[:2], 1)}
    heard = {name: Heard(len(tokens)) for name, (tokens, _) in wanted.items()}
    others = [Request(f"g{at}", random_prompt(30, seed=at), greedy(100)) for at in range(3)]
    reads = [Request(name, tokens, scored_from=start, reader=heard[name]) for name, (tokens, start) in wanted.items()]
    run_all(engine, [*others, *reads])

    assert engine.stats().preemptions > 0
    for name, (tokens, start) in wanted.items():
        told = heard[name]
        torch.testing.assert_close(told.rows[start:], llama.logprobs(tokens)[start - 1 : -1], atol=1e-4, rtol=0)
        assert told.rows[:start].isnan().all()
        assert [position for position, _ in told.pieces] == [
            start + sum(count for _, count in told.pieces[:at]) for at in range(len(told.pieces))
        ]
        assert max(count for _, count in told.pieces) <= ROWS_AT_ONCE
    assert len(heard["a"].pieces) > 3


def test_a_reader_needs_to_know_from_where(llama: TinyModel) -> None:
    with pytest.raises(InvalidRequest, match="reader"):
        engine_of(llama).submit(Request("x", [5, 6], reader=Heard(2)))


def test_of_several_choices_the_prompt_is_scored_once(llama: TinyModel) -> None:
    prompt = random_prompt(20, seed=2)
    engine = engine_of(llama)
    engine.submit(Request("x", prompt, greedy(3, prompt_logprobs=0, n=3)))
    told = [each for _ in range(8) for each in engine.step().prompt_logprobs]
    assert [each.logprobs for each in told] == [close(reference(llama, prompt, 1))]
    assert not engine.has_work


class TestRefusals:
    @pytest.mark.parametrize("start", [0, -1, 5, 6])
    def test_a_start_outside(self, llama: TinyModel, start: int) -> None:
        with pytest.raises(InvalidRequest, match="'start'") as caught:
            engine_of(llama).score([1, 2, 3, 4, 5], start)
        assert caught.value.field == "start"

    def test_what_is_no_token(self, llama: TinyModel) -> None:
        with pytest.raises(InvalidRequest, match="'tokens'"):
            engine_of(llama).score([1, VOCABULARY])

    def test_more_than_the_context(self, llama: TinyModel) -> None:
        with pytest.raises(PromptTooLong):
            engine_of(llama, max_model_len=32).score(random_prompt(34, seed=1))

    def test_an_engine_at_work_is_left_alone(self, llama: TinyModel) -> None:
        engine = engine_of(llama)
        request = Request("x", [1, 2], greedy(3))
        engine.submit(request)
        with pytest.raises(EngineBusy) as caught:
            engine.score([1, 2, 3])
        assert caught.value.in_flight == 1
        assert parity(llama, [request], run_all(engine)).tokens == 3

    def test_a_model_without_an_answer(self, llama: TinyModel) -> None:
        engine = engine_of(llama)
        forward = engine._runner._model
        engine._runner._model = lambda batch: forward(batch) * torch.nan  # type: ignore[assignment]
        with pytest.raises(ScoringFailed, match="not finite"):
            engine.score([1, 2, 3])
        engine._runner._model = forward
        assert engine.score([1, 2, 3]) == close(reference(llama, [1, 2, 3], 1))

    def test_a_model_without_an_answer_at_one_place(self, llama: TinyModel) -> None:
        """Whichever it is, what the others say is told to nobody."""
        engine = engine_of(llama)
        forward = engine._runner._model

        def spoiled(batch: Any) -> torch.Tensor:
            logits: torch.Tensor = forward(batch).clone()
            logits[-2] = torch.nan
            return logits

        engine._runner._model = spoiled  # type: ignore[assignment]
        engine.submit(Request("s", [1, 2, 3, 4], scored_from=1))
        output = engine.step()
        assert [failure.code for failure in output.failed] == ["logits_not_finite"]
