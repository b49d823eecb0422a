"""With `deterministic`, nothing that happens to others, or on the way, changes one bit of a request's numbers."""

from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request, SamplingParams
from penstock_engine.layers import attention
from penstock_engine.layers.ordered_attention import ordered_attention

from tests.engine.driving import greedy, parity, run_all
from tests.engine.tiny import KERNELS, TinyModel, random_prompt

PROMPT = random_prompt(45, seed=21)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, seed=11, max_tokens=24, ignore_eos=True, logprobs=2)
Told = list[tuple[int, float | None, tuple[tuple[int, float], ...]]]


def engine_of(model: TinyModel, dtype: Any, kernels: Any = "torch", **settings: Any) -> Engine:
    config = EngineConfig(dtype=dtype, deterministic=True, kernels=kernels, **settings)
    return Engine.from_folder(model.folder, config)


def told(engine: Engine, *others: Request, output: tuple[int, ...] = ()) -> Told:
    request = Request("x", PROMPT, DRAWN, output_ids=[list(output)] if output else ())
    deltas = run_all(engine, [*others[: len(others) // 2], request, *others[len(others) // 2 :]]).deltas["x"]
    return [(delta.token_id, delta.logprob, delta.top_logprobs) for delta in deltas]


def crowd(count: int = 9) -> list[Request]:
    return [Request(f"r{n}", random_prompt(3 + 11 * n, seed=n), greedy(8 + 5 * (n % 4))) for n in range(count)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
class TestBitForBit:
    @pytest.fixture
    def model(self, models: Any, kind: str) -> TinyModel:
        found: TinyModel = models(kind)
        return found

    @pytest.fixture
    def alone(self, model: TinyModel, dtype: str, kernels: str) -> Told:
        return told(engine_of(model, dtype, kernels))

    def test_beside_others(self, model: TinyModel, dtype: str, kernels: str, alone: Told) -> None:
        assert told(engine_of(model, dtype, kernels), *crowd()) == alone

    @pytest.mark.parametrize("budget", [9, 17, 40])
    def test_in_chunks(self, model: TinyModel, dtype: str, kernels: str, alone: Told, budget: int) -> None:
        assert told(engine_of(model, dtype, kernels, token_budget=budget, max_running=6), *crowd(4)) == alone

    def test_with_a_cached_prefix(self, model: TinyModel, dtype: str, kernels: str, alone: Told) -> None:
        engine = engine_of(model, dtype, kernels)
        run_all(engine, [Request("before", [*PROMPT[:39], 1, 2, 3], greedy(9))])
        assert told(engine, *crowd(3)) == alone
        assert engine.stats().tokens_cached >= 39
        assert told(engine) == alone  # its own pages this time, those written while decoding among them

    def test_after_preemption(self, model: TinyModel, dtype: str, kernels: str, alone: Told) -> None:
        engine = engine_of(model, dtype, kernels, kv_pages=12, max_running=4, trace_steps=999)
        growing = [Request(f"o{n}", random_prompt(20, seed=n), greedy(60), priority=1) for n in range(3)]
        assert told(engine, *growing) == alone
        assert any("x" in record.preempted for record in engine.trace)

    @pytest.mark.parametrize("count", [1, 13])
    def test_when_resumed_elsewhere(self, model: TinyModel, dtype: str, kernels: str, alone: Told, count: int) -> None:
        output = tuple(token for token, _, _ in alone[:count])
        assert told(engine_of(model, dtype, kernels), *crowd(3), output=output) == alone[count:]


def test_it_is_as_right_as_the_fast_way(llama: TinyModel) -> None:
    requests = crowd()
    found = parity(llama, requests, run_all(engine_of(llama, "float32"), requests))
    assert found.wrong == 0
    assert found.worst_logprob < 1e-4


def test_the_trial_at_start_notices_what_depends_on_the_batch(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(q: torch.Tensor, *rest: Any, **others: Any) -> torch.Tensor:
        return ordered_attention(q, *rest, **others) * (1 + q.shape[2] / 1000)

    monkeypatch.setattr(attention, "ordered_attention", wrong)
    with pytest.raises(InvalidConfig, match="not the same alone and in pieces"):
        engine_of(llama, "float32")
    Engine.from_folder(llama.folder, EngineConfig(dtype="float32"))


def test_a_pool_too_small_to_try_it_is_refused(llama: TinyModel) -> None:
    with pytest.raises(InvalidConfig, match="3 pages"):
        engine_of(llama, "float32", kv_pages=2)
