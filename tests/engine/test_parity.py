"""Greedy tokens and log probabilities equal those of `transformers`, whatever road the tokens took."""

import copy
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request
from penstock_engine.layers import attention, feed_forward, rotary, self_attention
from penstock_engine.model_config import read_model_config
from penstock_kernels import store_kv
from torch import Tensor

from tests.engine.driving import greedy, parity, run_all
from tests.engine.parity_table import (
    ARCHITECTURES,
    EXPERTS,
    LOGPROB_TOLERANCE,
    OUTPUT,
    kernels_of,
    measure,
    ragged_requests,
    run_every_mode,
)
from tests.engine.tiny import LONGROPE, TinyModel, compiled_only, random_prompt


@pytest.mark.parametrize(
    ("name", "kernels"), [(name, kernels) for name in ARCHITECTURES for kernels in kernels_of(name)]
)
def test_tokens_and_logprobs_equal_transformers_in_every_mode(models: Any, name: str, kernels: Any) -> None:
    kind, overrides = ARCHITECTURES[name]
    found, run, engine = run_every_mode(models(kind, **overrides), kernels)

    assert found.tokens == 13 * OUTPUT
    assert found.wrong == 0
    assert found.worst_logprob < LOGPROB_TOLERANCE
    assert sorted(name for name, _ in run.admitted) == sorted(run.deltas)  # once each, though some were preempted
    # The run really went through the modes that it is here to compare.
    stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.tokens_cached > 0
    assert any(counts.decoding and counts.tokens > counts.requests for counts in run.steps), "no mixed step"
    assert max(counts.tokens for counts in run.steps) == 16  # so the longer prompts ran in chunks


@pytest.mark.parametrize(("context", "lengths"), [(64, (1, 17, 24)), (256, (65, 70, 90))])
def test_longrope_takes_its_factors_by_the_context_served(models: Any, context: int, lengths: tuple[int, ...]) -> None:
    """The short ones where nothing exceeds the trained 64 positions, the long ones where requests do."""
    trained = {"original_max_position_embeddings": 64, "max_position_embeddings": 256}
    model = models("phi3", rope_parameters=LONGROPE, **trained)
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", max_model_len=context))
    requests = [Request(f"r{length}", random_prompt(length, seed=length), greedy(OUTPUT)) for length in lengths]
    found = parity(model, requests, run_all(engine, requests))
    assert (found.wrong, found.tokens) == (0, len(lengths) * OUTPUT)
    assert found.worst_logprob < LOGPROB_TOLERANCE


def test_scaled_positions_extend_the_context(models: Any) -> None:
    """A folder that says yarn or dynamic counts its trained positions; the engine serves those it was scaled to."""
    kind, overrides = ARCHITECTURES["llama-rope-dynamic"]
    assert read_model_config(models(kind, **overrides).folder).max_positions == 4 * 48
    kind, overrides = ARCHITECTURES["llama-rope-yarn"]
    assert read_model_config(models(kind, **overrides).folder).max_positions == 256


def test_the_table_says_what_the_tests_hold(llama: TinyModel) -> None:
    line = measure("llama", "torch")
    found, _, _ = run_every_mode(llama, "torch")
    assert (line.parity, line.ok) == (found, True)
    assert "llama" in str(line)


@pytest.mark.parametrize("policy", ["continuous", "static", "request"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_policies_and_caches_change_no_token(llama: TinyModel, policy: Any, prefix_cache: bool) -> None:
    config = EngineConfig(dtype="float32", max_running=4, token_budget=64, policy=policy, prefix_cache=prefix_cache)
    requests = ragged_requests()
    engine = Engine.from_folder(llama.folder, config)
    run = run_all(engine, requests)

    found = parity(llama, requests, run)
    assert (found.wrong, found.tokens) == (0, 13 * OUTPUT)
    assert found.worst_logprob < LOGPROB_TOLERANCE
    assert (engine.stats().tokens_cached > 0) == prefix_cache
    most_running = max(counts.requests for counts in run.steps)
    assert most_running == (1 if policy == "request" else 4)


def test_a_prefix_is_reused_to_the_token(llama: TinyModel) -> None:
    """One page, a part of a page, and all but the last token: what is cached is never computed again."""
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    stem = random_prompt(48, seed=5)
    run_all(engine, [Request("first", stem, greedy(1))])
    for name, prompt, cached in [
        ("same", stem, 47),
        ("inside a page", [*stem[:21], 1, 2, 3], 21),
        ("longer", [*stem, 4, 4], 48),
        ("other", [8, *stem], 0),
    ]:
        before = engine.stats()
        request = Request(name, prompt, greedy(4))
        run = run_all(engine, [request])
        after = engine.stats()
        assert after.tokens_cached - before.tokens_cached == cached, name
        assert run.admitted == [(name, cached)]
        assert after.tokens_computed - before.tokens_computed == len(prompt) - cached + 3, name
        found = parity(llama, [request], run)
        assert found.wrong == 0
        assert found.worst_logprob < LOGPROB_TOLERANCE


def test_a_namespace_sees_nothing_of_another(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))
    prompt = random_prompt(40, seed=6)
    run_all(engine, [Request("a", prompt, greedy(12), namespace="acme")])
    run_all(engine, [Request("b", prompt, greedy(4), namespace="apex")])
    assert engine.stats().tokens_cached == 0
    run_all(engine, [Request("c", prompt, greedy(4), namespace="acme")])
    assert engine.stats().tokens_cached == 39


def test_bfloat16_stays_within_the_reference_candidates(llama: TinyModel) -> None:
    """Rounding may change a token; where it first does, each side's choice is among the other's first five."""
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="bfloat16", kv_pages=64))
    requests = [Request(f"r{n}", random_prompt(n, seed=n), greedy(16, logprobs=5)) for n in (3, 20, 50)]
    run = run_all(engine, requests)
    reference = copy.deepcopy(llama.reference).bfloat16()
    for request in requests:
        with torch.inference_mode():
            logits = reference(torch.tensor([[*request.prompt_ids, *run.tokens(request.id)]])).logits[0]
        theirs = logits[len(request.prompt_ids) - 1 : -1].float()
        for delta, row in zip(run.deltas[request.id], theirs, strict=True):
            if delta.token_id != int(row.argmax()):
                assert delta.token_id in row.topk(5).indices.tolist()
                assert int(row.argmax()) in [token for token, _ in delta.top_logprobs]
                break


@pytest.mark.parametrize(
    "name", ["llama", "mistral-window", "qwen3-experts", "mixtral", "phi3", "gemma2", "gemma3", "bridged-gpt2"]
)
def test_bfloat16_rounds_no_worse_than_transformers(models: Any, name: str) -> None:
    """Against float32: random experts flip on rounding, so tokens of the two bfloat16 runs may well differ."""
    kind, overrides = ARCHITECTURES[name]
    model = models(kind, **overrides)
    rounded = TinyModel(model.folder, copy.deepcopy(model.reference).bfloat16())
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="bfloat16", kv_pages=64))
    requests = [Request(f"r{n}", random_prompt(n, seed=n), greedy(1, logprobs=20)) for n in range(3, 23)]
    run = run_all(engine, requests)
    ours, theirs = [], []
    for request in requests:
        exact, other = (each.logprobs(request.prompt_ids)[-1].float() for each in (model, rounded))
        for token, logprob in run.deltas[request.id][0].top_logprobs:
            ours.append(abs(logprob - float(exact[token])))
            theirs.append(abs(float(other[token] - exact[token])))
    assert len(ours) == 20 * 20
    assert sum(ours) < 1.3 * sum(theirs)


class TestTheCheckItself:
    """A wrong kernel must not pass: each mutation here is one that parity has to notice."""

    def assert_caught(self, model: TinyModel, kernels: Any = "torch") -> None:
        found, _, _ = run_every_mode(model, kernels)
        assert found.wrong > 0
        assert found.worst_logprob > 100 * LOGPROB_TOLERANCE

    def test_a_wrong_rotary_base(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = rotary.inverse_frequencies
        monkeypatch.setattr(rotary, "inverse_frequencies", lambda *given: right(*given) * 1.05)
        self.assert_caught(llama)

    def test_a_mask_that_hides_the_token_itself(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention._visible
        monkeypatch.setattr(attention, "_visible", lambda slots, last: right(slots, last - (last > 0)))
        self.assert_caught(llama)

    def test_a_mask_that_shows_the_next_slot(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention._visible
        monkeypatch.setattr(attention, "_visible", lambda slots, last: right(slots, last + 1))
        self.assert_caught(llama)

    def test_a_slot_off_by_one(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = store_kv

        def shifted(pool: Tensor, slots: Tensor, kv: Tensor) -> None:
            right(pool, slots ^ 1, kv)

        monkeypatch.setattr(self_attention, "store_kv", shifted)
        self.assert_caught(llama)

    def test_a_window_one_too_wide(self, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention._recent
        monkeypatch.setattr(attention, "_recent", lambda slots, last, window: right(slots, last, window + 1))
        self.assert_caught(models("mistral", sliding_window=20))

    def test_experts_in_another_order(self, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        right = feed_forward._by_expert

        def swapped(chosen: Tensor, experts: int) -> tuple[Tensor, list[int]]:
            return right(experts - 1 - chosen, experts)

        monkeypatch.setattr(feed_forward, "_by_expert", swapped)
        self.assert_caught(models("qwen3_moe", **EXPERTS))


@compiled_only
class TestTheCheckOfCompiledKernels:
    """The same of the other road: what a step tells the kernels, made wrong."""

    def assert_caught(self, model: TinyModel) -> None:
        found, _, _ = run_every_mode(model, "compiled")
        assert found.wrong > 0
        assert found.worst_logprob > 100 * LOGPROB_TOLERANCE

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda places: places._replace(slots=places.slots ^ 1),
            lambda places: places._replace(positions=places.positions + (places.positions > 0)),
            lambda places: places._replace(rows=(places.rows + 1) % len(places.pages)),
        ],
        ids=["slots", "positions", "rows"],
    )
    def test_places(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
        from penstock_kernels.cpu.workspace import Workspace

        right = Workspace.place
        monkeypatch.setattr(Workspace, "place", lambda space, places: right(space, wrong(places)))
        self.assert_caught(llama)

    def test_a_window_one_too_wide(self, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from penstock_engine.layers import cpu

        right = cpu.PoolAttention.__init__

        def widened(attention: Any, *given: Any) -> None:
            right(attention, *given)
            attention.window += 1

        monkeypatch.setattr(cpu.PoolAttention, "__init__", widened)
        self.assert_caught(models("mistral", sliding_window=20))

    def test_a_program_of_another_step(self, llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        from penstock_engine.layers import cpu

        monkeypatch.setattr(cpu.Workspace, "run", lambda space, program: None)
        self.assert_caught(llama)
