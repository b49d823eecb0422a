"""K and V in 8 bits on a CPU: against `transformers` that keeps them so, and through all that moves pages."""

from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, Request
from penstock_engine.config import KVDType
from penstock_engine.sizing import KV_DTYPES, KVShape, pool_pages

from tests.engine.driving import greedy, parity, run_all
from tests.engine.rounded import rounded
from tests.engine.tiny import compiled_only, random_prompt

STEM = random_prompt(45, seed=19)
EDGE = 2e-3  # what one number moves that lies between two roundings: sums have another order here
SHAPE = {"num_hidden_layers": 2}

pytestmark = [compiled_only, pytest.mark.parametrize("kept_as", KV_DTYPES)]


def engine_of(model: Any, kept_as: KVDType, **settings: Any) -> Engine:
    config = {"dtype": "float32", "kv_pages": 40, "kv_dtype": kept_as, **settings}
    return Engine.from_folder(model.folder, EngineConfig(**config))


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_tokens_and_logprobs_are_those_of_a_rounded_reference(models: Any, kept_as: KVDType, kind: str) -> None:
    """In chunks, beside each other, with cached pages and a copied one; gemma2 has windows and soft caps."""
    model = rounded(models(kind, **SHAPE), kv_dtype=kept_as)
    engine = engine_of(model, kept_as, token_budget=21, max_running=3)
    requests = [Request(f"r{at}", [*STEM[: 17 + 9 * at], 5, 6], greedy(5)) for at in range(4)]
    run = run_all(engine, requests)
    found = parity(model, requests, run)
    assert engine.stats().tokens_cached >= 17
    assert (run.failed, found.wrong, found.tokens) == ([], 0, 20)
    assert found.worst_logprob < EDGE


def test_the_reference_without_rounding_is_another(models: Any, kept_as: KVDType) -> None:
    """So that the test above says something."""
    model, request = models("qwen3", **SHAPE), Request("r", STEM, greedy(5))
    found = parity(model, [request], run_all(engine_of(model, kept_as), [request]))
    assert found.worst_logprob > 4 * EDGE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_in_chunks_cached_preempted_and_resumed(models: Any, kept_as: KVDType, dtype: Any) -> None:
    model = models("qwen3", **SHAPE)
    settings = {"dtype": dtype, "deterministic": True}

    def told(engine: Engine, *others: Request, done: tuple[int, ...] = ()) -> list[tuple[int, float | None]]:
        request = Request("x", STEM, greedy(24, logprobs=0), output_ids=[list(done)] if done else ())
        run = run_all(engine, [*others, request])
        assert run.failed == []
        return [(delta.token_id, delta.logprob) for delta in run.deltas["x"]]

    alone = told(engine_of(model, kept_as, **settings))
    small = engine_of(model, kept_as, kv_pages=12, max_running=4, token_budget=13, **settings)
    growing = [Request(f"o{at}", random_prompt(20, seed=at), greedy(60), priority=1) for at in range(3)]
    assert told(small, *growing) == alone
    assert small.stats().preemptions > 0
    again = engine_of(model, kept_as, **settings)
    run_all(again, [Request("before", [*STEM[:39], 1, 2, 3], greedy(9))])
    assert told(again) == alone
    assert again.stats().tokens_cached >= 39
    assert told(again, done=tuple(token for token, _ in alone[:7])) == alone[7:]


def test_nearly_twice_the_pages(models: Any, kept_as: KVDType) -> None:
    """Heads of 64 numbers: 66 bytes with their scale in place of 128."""
    model = models("llama", **SHAPE, head_dim=64)
    pages = {}
    for each in ("auto", kept_as):
        config = EngineConfig(kv_bytes=1 << 20, kv_dtype=each, max_model_len=256)
        engine = Engine.from_folder(model.folder, config)
        shape = KVShape.of(engine.model_config, engine.config, torch.float32)
        pages[each] = engine.stats().pages_total
        assert pages[each] == pool_pages(config, shape, 256, lambda: 0)
    assert pages[kept_as] / pages["auto"] == pytest.approx(256 / 66, rel=0.05)
