"""Rounded weights, and K and V in 8 bits, on a GPU's layers: interpreted, against `transformers` that rounds alike.

What is left between the two is the order of sums, and now and then a number on the edge between two roundings.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import penstock_engine.engine as engine_module
import pytest
import torch
import triton.language as tl
from penstock_engine import Engine, EngineConfig, InvalidConfig, Request
from penstock_engine.config import KVDType, Quantization
from penstock_engine.kernel_choice import choose_kernels, loading_device
from penstock_engine.layers.gpu_linear import RoundedLinear, Rounding, round_int4
from penstock_engine.layers.linear import Linear
from penstock_engine.loading import load_model
from penstock_engine.model_config import read_model_config
from penstock_engine.models import CausalLM
from penstock_engine.radix_cache import RadixCache
from penstock_engine.request import PromptLogprobs
from penstock_engine.sizing import KV_DTYPES
from penstock_kernels.gpu.quant_matmul_w4a16 import FUSED_ROWS
from torch import Tensor, nn
from triton.runtime import interpreter

from tests.engine.driving import Parity, greedy, parity, run_all
from tests.engine.parity_table import LOGPROB_TOLERANCE
from tests.engine.rounded import rounded
from tests.engine.tiny import SCORES, VOCABULARY, TinyModel, random_prompt

LAYERS = 2
WIDE = {"num_hidden_layers": LAYERS, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
MOVED = {"int8": 1 / 254, "fp8": 1 / 16}  # at most by a rounding: of a head's largest number, of a number itself
STEM = random_prompt(19, seed=19)
# Triton's interpreter is numpy, which says that exp(90) is infinite, as a sigmoid on a GPU finds without a word.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(autouse=True)
def e4m3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds to e4m3 without the carry to the next power of two; a GPU rounds as torch does."""
    right = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if target != tl.float8e4nv or source != tl.float32:
            return right(data, source, target, mode)
        return torch.from_numpy(data.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines choose as they would on an H200, for a model that lies on the CPU."""

    def chosen(model: CausalLM, config: EngineConfig, **given: Any) -> None:
        choose_kernels(model, replace(config, device="cuda"), **given)

    monkeypatch.setattr(engine_module, "choose_kernels", chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def engine_of(model: TinyModel, **settings: Any) -> Engine:
    return Engine.from_folder(model.folder, EngineConfig(**{"dtype": "float32", "kv_pages": 12, **settings}))


def parity_of(model: TinyModel, *requests: Request, **settings: Any) -> tuple[Engine, Parity]:
    """Of prompts in chunks, mixed with decoding, and decoding alone."""
    engine = engine_of(model, token_budget=12, max_running=3, **settings)
    run = run_all(engine, requests)
    assert run.failed == []
    return engine, parity(model, requests, run)


@pytest.mark.usefixtures("on_a_gpu")
class TestRoundedWeights:
    @pytest.mark.parametrize(("kind", "quantization"), [("qwen2", "int4"), ("llama", "int8"), ("qwen2", "fp8")])
    def test_tokens_and_logprobs_are_those_of_a_rounded_reference(
        self, models: Any, kind: str, quantization: Quantization
    ) -> None:
        made = rounded(models(kind, **WIDE), quantization)
        _, found = parity_of(made, Request("a", STEM, greedy(3)), quantization=quantization)
        assert (found.wrong, found.tokens) == (0, 3)
        assert found.worst_logprob < LOGPROB_TOLERANCE

    def test_in_float16(self, models: Any) -> None:
        model = rounded(models("qwen2", **WIDE), "int4", loaded=torch.float16)
        ours = engine_of(model, quantization="int4", dtype="float16").score(STEM)
        theirs = model.logprobs(STEM)[range(len(STEM) - 1), STEM[1:]]
        assert float((torch.tensor(ours) - theirs).abs().max()) < 0.01

    def test_what_is_rounded_is_told(self, models: Any) -> None:
        """The head stays, and the routers of experts do."""
        model = models("mixtral", num_hidden_layers=1, num_local_experts=2)
        told = engine_of(model, quantization="int8", kv_pages=4).kernels
        expected = {
            "layers": "compiled by Triton",
            "tiles": "in code",
            "Linear": "2",
            "PoolAttention": "1",
            "W8A8": str(2 + 2 * 2),
            "scores": SCORES,
        }
        assert told == expected

    def test_all_of_a_rounded_model_moves_to_the_device(self, models: Any) -> None:
        """From the host's memory, in which its weights have waited; a device without memory shows it."""
        folder, there = models("qwen3", **WIDE).folder, torch.device("meta")
        config, read = EngineConfig(device="cuda", quantization="int8"), read_model_config(folder)
        place = loading_device(config, there)
        model = load_model(folder, read, positions=64, dtype=torch.float32, device=place)
        assert {each.device for each in held(model)} == {torch.device("cpu")}
        choose_kernels(model, config, dtype=torch.float32, threads=1, device=there)
        assert {each.device for each in held(model)} == {there}

    def test_no_layer_is_there_twice(self, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """When one is rounded, those before it are nowhere in their own width any more."""
        alive: list[int] = []
        before: list[weakref.ref[Linear]] = []
        right = Rounding.linear

        def watched(rounding: Rounding, linear: Linear) -> RoundedLinear:
            alive.append(sum(reference() is not None for reference in before))
            before.append(weakref.ref(linear))
            return right(rounding, linear)

        monkeypatch.setattr(Rounding, "linear", watched)
        engine = engine_of(models("llama", **WIDE), quantization="int4")
        assert alive == [0] * (4 * LAYERS)
        floats = [each for each in held(engine._runner._model) if each.is_floating_point() and each.ndim == 2]
        assert {tuple(each.shape) for each in floats} == {(VOCABULARY, 128)}  # embeddings and head


def held(model: nn.Module) -> Iterator[Tensor]:
    """All that a model's modules hold, in tuples and bound to products too."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        for each in vars(module).values():
            parts = vars(each.keywords["weight"]).values() if isinstance(each, partial) else each
            if isinstance(each, partial | tuple):
                yield from (part for part in parts if isinstance(part, Tensor))


class TestEachLayer:
    @pytest.mark.parametrize(("columns", "kind"), [(384, "W4A16"), (192, "W4A16"), (96, "W4A16"), (80, "W8A8")])
    def test_a_width_that_no_group_divides_has_8_bits(self, columns: int, kind: str) -> None:
        draw = torch.Generator().manual_seed(columns)
        layer = Linear(columns, 40, bias=True, dtype=torch.float32, device=torch.device("cpu"))
        for each in layer.parameters():
            each.normal_(generator=draw)
        made = Rounding("int4", torch.device("cpu"), deterministic=False).linear(layer)
        x = torch.randn(3, columns, generator=draw)
        off = (made(x) - layer(x)).abs().mean() / layer(x).abs().mean()
        assert made.kind == kind
        assert 1e-3 < off < (0.15 if kind == "W4A16" else 0.02)

    def test_4_bits_are_the_nearest_of_sixteen(self) -> None:
        weight = torch.randn(9, 256, generator=torch.Generator().manual_seed(1))
        weight[0, :128], weight[1, 128:] = 0, weight[1, 128:].abs() + 3  # of zeros; without a negative number
        weight[2, 5] = 0
        codes = round_int4(weight, 128)
        kept = codes.dequantize()
        assert ((kept - weight).abs() <= codes.scales.repeat_interleave(128, 1) * 0.5001).all()
        assert not kept[0, :128].any()
        assert kept[2, 5] == 0

    @pytest.mark.parametrize(
        ("quantization", "rows", "outputs", "columns"),
        [("int4", FUSED_ROWS + 1, 20, 256), ("int8", 17, 20, 256), ("fp8", 65, 260, 1024)],
    )
    def test_in_the_lane_of_fixed_bits_a_row_is_what_it_is_alone(
        self, quantization: Quantization, rows: int, outputs: int, columns: int
    ) -> None:
        """Beside so many rows that, were it not for the lane, its depth would be cut otherwise, or not at all."""
        layer = Linear(columns, outputs, bias=False, dtype=torch.float32, device=torch.device("cpu"))
        draw = torch.Generator().manual_seed(1)
        layer.weight.normal_(generator=draw)
        made = Rounding(quantization, torch.device("cpu"), deterministic=True).linear(layer)
        x = torch.randn(rows, columns, generator=draw)
        assert torch.equal(made(x)[-1], made(x[-1:])[0])


@pytest.mark.usefixtures("on_a_gpu")
class TestRoundedContexts:
    @pytest.mark.parametrize("kept_as", KV_DTYPES)
    def test_tokens_and_logprobs_are_those_of_a_rounded_reference(self, models: Any, kept_as: KVDType) -> None:
        """Of two prompts, the second with a cached page and a copied one."""
        requests = Request("a", STEM, greedy(4)), Request("b", [*STEM[:17], 5, 6], greedy(3))
        made = rounded(models("qwen3", **WIDE), kv_dtype=kept_as)
        engine, found = parity_of(made, *requests, kv_dtype=kept_as)
        assert engine.stats().tokens_cached == 17
        assert (found.wrong, found.tokens) == (0, 7)
        assert found.worst_logprob < LOGPROB_TOLERANCE

    @pytest.mark.parametrize("kept_as", KV_DTYPES)
    def test_they_stay_near_what_is_not_rounded(
        self, models: Any, kept_as: str, record_property: Callable[[str, object], None]
    ) -> None:
        """A layer's answer moves by no more than its K and V do, and logits by that share of what they spread over."""
        model: TinyModel = models("llama", **WIDE)
        prompt = random_prompt(48, seed=64)
        ours, best = told(engine_of(model, kv_dtype=kept_as, prefix_cache=False), prompt)
        exact = model.logprobs(prompt)[:-1]
        apart = (ours - exact[range(len(ours)), prompt[1:]]).abs()
        bound = 2 * LAYERS * MOVED[kept_as] * float(exact.std())
        agreement = float((best == exact.argmax(-1)).float().mean())
        record_property("greedy_agreement", agreement)
        assert bound / 100 < float(apart.mean()) < bound
        assert agreement >= 0.8  # measured: 1.0 of int8, 0.91 of e4m3

    def test_what_is_kept_is_told(self, models: Any) -> None:
        engine = engine_of(models("llama", **WIDE), kv_dtype="fp8")
        assert engine.kernels["kv"] == "fp8"
        assert isinstance(engine._cache, RadixCache)
        assert engine._cache.kept_as == "fp8"


def told(engine: Engine, prompt: list[int]) -> tuple[Tensor, Tensor]:
    """(log probabilities, likeliest tokens) of the prompt's tokens from the second on."""
    engine.submit(Request("a", prompt, greedy(1, prompt_logprobs=1)))
    scored: list[PromptLogprobs] = []
    while engine.has_work:
        scored += engine.step().prompt_logprobs
    (found,) = scored
    return torch.tensor(found.logprobs), torch.tensor([tops[0][0] for tops in found.top_logprobs])


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("field", "value", "capability", "remedy"),
        [("quantization", "fp8", (8, 0), "int8"), ("kv_dtype", "fp8", (8, 6), "int8")],
    )
    def test_e4m3_on_a_gpu_without_it(
        self,
        on_a_gpu: None,
        models: Any,
        monkeypatch: pytest.MonkeyPatch,
        field: str,
        value: str,
        capability: tuple[int, int],
        remedy: str,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with pytest.raises(InvalidConfig, match=f"below 8.9; use '{remedy}'") as caught:
            engine_of(models("llama", **WIDE), **{field: value})
        assert caught.value.field == field

    def test_8_bits_of_context_in_torch(self, models: Any) -> None:
        with pytest.raises(InvalidConfig, match="kernels is 'torch'") as caught:
            engine_of(models("llama", **WIDE), kv_dtype="int8", kernels="torch")
        assert caught.value.field == "kv_dtype"
