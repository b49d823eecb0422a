"""What weights take in memory is what their layout says."""

import pytest
from penstock_engine import Engine, EngineConfig

from tests.engine.conftest import MakeModel
from tests.engine.tiny import TinyModel, compiled_only


def held(model: TinyModel, **others: str) -> int:
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="float32", kv_pages=4, **others))  # type: ignore[arg-type]
    return engine.weight_bytes


def test_in_torch_it_is_every_parameter(llama: TinyModel) -> None:
    numbers = sum({each.data_ptr(): each.numel() for each in llama.reference.parameters()}.values())
    assert held(llama, kernels="torch") == 4 * numbers


def test_layers_that_onednn_has_packed_count_too(models: MakeModel) -> None:
    model = models("llama", vocab_size=256)
    engine = Engine.from_folder(model.folder, EngineConfig(dtype="bfloat16", kv_pages=4, kernels="torch"))
    assert int(engine.kernels["prepacked"]) > 0
    numbers = sum({each.data_ptr(): each.numel() for each in model.reference.parameters()}.values())
    assert engine.weight_bytes >= 2 * numbers


@compiled_only
def test_packed_layers_count_as_they_are_packed(llama: TinyModel) -> None:
    plain = held(llama, kernels="compiled")
    assert plain == pytest.approx(held(llama, kernels="torch"), rel=0.35)  # panels are filled up to 64 outputs
    embedding = 4 * 199 * 64
    assert (held(llama, quantization="int8") - embedding) / (plain - embedding) == pytest.approx(1 / 4, rel=0.25)


def test_a_token_takes_its_keys_and_values_in_every_layer(llama: TinyModel) -> None:
    engine = Engine.from_folder(llama.folder, EngineConfig(dtype="float32", kv_pages=4))
    assert engine.kv_token_bytes == 3 * 2 * 2 * 16 * 4
