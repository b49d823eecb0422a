"""Keys and values in 8 bits: the scales are those of what is cached, and others find them where they look."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_compress import InvalidRecipe, Recipe, compress
from penstock_compress.kv_scales import LARGEST
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from tests.compress.test_compressing import all_tensors, loaded, logprobs
from tests.engine.tiny import TinyModel, make_tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")


def cached(model: Any, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The largest key and value that each block of the model caches."""
    cache = DynamicCache()
    with torch.inference_mode():
        model(tokens, past_key_values=cache)
    return [(layer.keys.abs().amax(), layer.values.abs().amax()) for layer in cache.layers]


@pytest.mark.parametrize(("kv", "kind"), [("int8", "llama"), ("fp8", "llama"), ("fp8", "qwen3"), ("int8", "gemma2")])
def test_scales_are_those_of_the_largest_that_is_cached(tmp_path: Path, tokens: Tensor, kv: Any, kind: str) -> None:
    source = make_tiny(tmp_path / "source", kind, intermediate_size=128)
    compress(source.folder, tmp_path / "smaller", Recipe("int4", group=32, kv=kv), tokens)
    tensors = all_tensors(tmp_path / "smaller")
    for block, largest in enumerate(cached(loaded(tmp_path / "smaller"), tokens)):
        for name, one in zip("kv", largest, strict=True):
            scale = tensors[f"model.layers.{block}.self_attn.{name}_scale"]
            assert scale.shape == (1,)
            assert float(scale) * LARGEST[kv] == pytest.approx(float(one), rel=1e-4)


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_transformers_loads_the_scales_and_rounds_what_it_caches(
    tiny: TinyModel, target: Path, tokens: Tensor, kv: Any
) -> None:
    compress(tiny.folder, target, Recipe("int8-weights", kv=kv), tokens)
    compress(tiny.folder, target.with_name("plain"), Recipe("int8-weights"))
    model, plain = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (target, target.with_name("plain"))
    )
    stored = all_tensors(target)
    for block, layer in enumerate(model.model.layers):
        assert torch.equal(layer.self_attn.k_scale, stored[f"model.layers.{block}.self_attn.k_scale"])
        assert torch.equal(layer.self_attn.v_scale, stored[f"model.layers.{block}.self_attn.v_scale"])
    one, two = logprobs(plain), logprobs(model)
    assert not torch.equal(one, two)
    assert float((one.exp() * (one - two)).sum(-1).mean()) < (0.02 if kv == "int8" else 0.1)


def test_the_scheme_is_told_as_the_library_reads_it(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    compress(tiny.folder, target, Recipe("int4", group=32, kv="fp8"), tokens)
    told = QuantizationConfig.model_validate(json.loads((target / "config.json").read_text())["quantization_config"])
    assert told.kv_cache_scheme is not None
    assert (told.kv_cache_scheme.num_bits, told.kv_cache_scheme.type, told.kv_cache_scheme.dynamic) == (
        8,
        "float",
        False,
    )


def test_what_else_it_may_be_is_said() -> None:
    with pytest.raises(InvalidRecipe) as refused:
        Recipe("int4", kv="int4")  # type: ignore[arg-type]
    assert refused.value.field == "kv"
