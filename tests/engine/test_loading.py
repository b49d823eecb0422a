"""A folder that cannot be served is refused by name: the file, what is wrong, what would be right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_engine import (
    Engine,
    EngineConfig,
    ModelCorrupt,
    ModelLoadError,
    ModelNotFound,
    ModelUnsupported,
    Request,
)
from penstock_engine.model_config import read_model_config
from safetensors.torch import load_file, save_file

from tests.engine.driving import greedy, parity, run_all
from tests.engine.tiny import TinyModel, random_prompt


@pytest.fixture
def folder(llama: TinyModel, tmp_path: Path) -> Path:
    """A copy of a good folder, to be spoilt."""
    return Path(shutil.copytree(llama.folder, tmp_path / "model"))


def load(folder: Path) -> Engine:
    return Engine.from_folder(folder, EngineConfig(dtype="float32", kv_pages=16))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def failure(folder: Path, error: type[ModelLoadError], *words: str) -> ModelLoadError:
    with pytest.raises(error) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_no_folder(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere", ModelNotFound, "nowhere", "config.json").code == "model_not_found"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    failure(folder, ModelNotFound, "config.json")


@pytest.mark.parametrize("content", ["{", "[1]", "\x00\xff"])
def test_a_config_that_is_not_an_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    failure(folder, ModelCorrupt, "config.json")


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"model_type": "mamba"}, ModelUnsupported, "llama, mistral, mixtral, phi3, qwen2"),
        ({"model_type": None}, ModelUnsupported, "model_type"),
        ({"hidden_act": "gelu"}, ModelUnsupported, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, ModelUnsupported, "quantization_config"),
        ({"use_bidirectional_attention": True}, ModelUnsupported, "use_bidirectional_attention"),
        ({"layer_types": ["chunked_attention"] * 3}, ModelUnsupported, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, ModelUnsupported, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": 0}, ModelCorrupt, "sliding_window"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "2"}, ModelCorrupt, "max_window"),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}, ModelCorrupt, "experts_per_tok"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, ModelCorrupt, "moe_intermediate_size"),
        ({"rope_parameters": {"rope_type": "ntk-mixed", "factor": 2.0}}, ModelUnsupported, "'ntk-mixed'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, ModelCorrupt, "factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.2}}, ModelCorrupt, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, ModelCorrupt, "low_freq_factor"),
        ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, ModelCorrupt, "short_factor"),
        ({"hidden_size": "64"}, ModelCorrupt, "hidden_size"),
        ({"vocab_size": None}, ModelCorrupt, "vocab_size"),
        ({"num_hidden_layers": 0}, ModelCorrupt, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, ModelCorrupt, "num_key_value_heads"),
        ({"head_dim": 15}, ModelCorrupt, "head_dim"),
        ({"rms_norm_eps": "small"}, ModelCorrupt, "rms_norm_eps"),
    ],
)
def test_a_config_that_we_cannot_run(folder: Path, changes: Any, error: type[ModelLoadError], word: str) -> None:
    edit_config(folder, **changes)
    assert failure(folder, error, word).path == folder / "config.json"


@pytest.mark.parametrize("eos", [-1, 199, "end", [3, 400]])
def test_an_end_of_sequence_outside_the_vocabulary(folder: Path, eos: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    failure(folder, ModelCorrupt, "eos_token_id")


def test_generation_config_goes_before_config(folder: Path) -> None:
    edit_config(folder, eos_token_id=3)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert read_model_config(folder).eos_ids == (4, 5)
    (folder / "generation_config.json").unlink()
    assert read_model_config(folder).eos_ids == (3,)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    failure(folder, ModelNotFound, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_weights_cut_short(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert failure(folder, ModelCorrupt, "safetensors").path == path


def test_a_tensor_is_missing(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.__delitem__("model.layers.1.self_attn.k_proj.weight"))
    failure(folder, ModelCorrupt, "model.layers.1.self_attn.k_proj.weight")


def test_a_tensor_that_we_would_ignore(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.sinks": torch.ones(4)}))
    failure(folder, ModelUnsupported, "model.layers.0.self_attn.sinks")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    failure(folder, ModelCorrupt, "model.norm.weight", "[65]", "[64]")


def test_a_quantized_tensor(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    failure(folder, ModelUnsupported, "model.norm.weight", "int8")


class TestShards:
    @pytest.fixture
    def sharded(self, llama: TinyModel, tmp_path: Path) -> Path:
        llama.reference.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
        return tmp_path / "sharded"

    def test_give_the_same_tokens(self, llama: TinyModel, sharded: Path) -> None:
        requests = [Request("x", random_prompt(20, seed=1), greedy(10))]
        assert parity(llama, requests, run_all(load(sharded), requests)).wrong == 0

    def test_one_is_missing(self, sharded: Path) -> None:
        victim = sorted(sharded.glob("*.safetensors"))[1]
        victim.unlink()
        assert failure(sharded, ModelNotFound, "names it").path == victim

    def test_the_index_reaches_outside(self, sharded: Path) -> None:
        index = sharded / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../secret.safetensors"}}))
        failure(sharded, ModelCorrupt, "outside the folder")

    def test_the_index_is_empty(self, sharded: Path) -> None:
        (sharded / "model.safetensors.index.json").write_text("{}")
        failure(sharded, ModelCorrupt, "weight_map")


def test_a_tied_head_saved_twice_is_no_surprise(models: Any, tmp_path: Path) -> None:
    tied = models("llama", tie_word_embeddings=True)
    folder = Path(shutil.copytree(tied.folder, tmp_path / "tied"))
    edit_weights(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    requests = [Request("x", random_prompt(20, seed=1), greedy(10))]
    assert parity(tied, requests, run_all(load(folder), requests)).wrong == 0


def test_the_old_spelling_of_rope(llama: TinyModel, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"]}))
    assert read_model_config(folder).rope == read_model_config(llama.folder).rope
    edit_config(folder, rope_scaling={"type": "linear", "factor": 2.0})
    assert (read_model_config(folder).rope.kind, read_model_config(folder).rope.factor) == ("linear", 2.0)


def test_progress_reaches_the_end(llama: TinyModel) -> None:
    seen: list[tuple[str, int, int]] = []
    Engine.from_folder(llama.folder, EngineConfig(), progress=lambda *event: seen.append(event))
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1] == ("weights", len(seen), len(seen))
