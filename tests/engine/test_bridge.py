"""Causal LMs of transformers over our pages: what is refused, and that the self-test at load can fail.

That those which are served say what transformers says is in test_parity.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_engine import Engine, EngineConfig, ModelCorrupt, ModelLoadError, ModelUnsupported
from penstock_engine.layers import attention
from penstock_engine.model_config import NATIVE
from penstock_engine.models import MODELS, bridge
from penstock_kernels import store_kv
from safetensors.torch import load_file, save_file
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

from tests.engine.parity_table import UNGROUPED
from tests.engine.tiny import TinyModel


@pytest.fixture(scope="module")
def gpt2(models: Any) -> TinyModel:
    model: TinyModel = models("gpt2", **UNGROUPED)
    return model


def refusal(folder: Path, error: type[ModelLoadError] = ModelUnsupported) -> str:
    with pytest.raises(error) as caught:
        Engine.from_folder(folder, EngineConfig(dtype="float32", kv_pages=16))
    return str(caught.value)


def edited(model: TinyModel, to: Path, **changes: Any) -> Path:
    folder = Path(shutil.copytree(model.folder, to / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_native_families_are_read_natively() -> None:
    assert set(MODELS) == NATIVE


def test_alibi_is_refused_by_name(models: Any) -> None:
    said = refusal(models("bloom").folder)
    assert "'bloom'" in said
    assert "ALiBi" in said


@pytest.mark.parametrize(("model_type", "word"), [("mamba", "'mamba'"), ("t5", "'t5'"), ("nonesuch", "nonesuch")])
def test_other_kinds_of_models_are_refused_by_name(gpt2: TinyModel, tmp_path: Path, model_type: str, word: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    said = refusal(tmp_path)
    assert word in said
    assert "llama" in said  # and told what is served


def test_code_of_a_folder_is_never_run(gpt2: TinyModel, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = edited(gpt2, tmp_path, model_type="evil", auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    refusal(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
    ],
)
def test_what_a_batch_would_spoil_is_refused(models: Any, tmp_path: Path, changes: Any, word: str) -> None:
    model = models("starcoder2", sliding_window=20)
    assert word in refusal(edited(model, tmp_path, **changes))


def test_a_tensor_is_missing(gpt2: TinyModel, tmp_path: Path) -> None:
    folder = edited(gpt2, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "h.1.attn.c_attn.weight" in refusal(folder, ModelCorrupt)


class TestTheSelfTest:
    """Each mutation is one that loading has to notice."""

    def test_a_wrong_mask(self, gpt2: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention._visible
        monkeypatch.setattr(attention, "_visible", lambda slots, last: right(slots, last + 1))
        assert "differ" in refusal(gpt2.folder)

    def test_a_wrong_slot(self, gpt2: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bridge, "store_kv", lambda pool, slots, kv: store_kv(pool, slots ^ 1, kv))
        assert "differ" in refusal(gpt2.folder)

    def test_a_window_that_is_not_kept(self, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        right = attention.Scores
        monkeypatch.setattr(bridge, "Scores", lambda scale, window, softcap: right(scale, None, softcap))
        assert "differ" in refusal(models("starcoder2", sliding_window=20).folder)

    def test_an_argument_that_we_would_ignore(self, gpt2: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        right = bridge.attend

        def with_bias(*given: Any, **others: Any) -> Any:
            return right(*given, **others, position_bias=torch.ones(1))

        monkeypatch.setattr(bridge, "attend", with_bias)
        assert "position_bias" in refusal(gpt2.folder)


class TestWhatAMaskShows:
    config = type("Config", (), {"max_position_embeddings": 64})

    def test_all_of_the_past(self) -> None:
        assert bridge.paged_mask(mask_function=causal_mask_function, config=self.config).window is None

    @pytest.mark.parametrize("size", [16, 24])
    def test_chunks_are_refused(self, size: int) -> None:
        chunks = chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))
        with pytest.raises(bridge.NotServed, match="mask"):
            bridge.paged_mask(mask_function=chunks, config=self.config)

    def test_the_future_is_refused(self) -> None:
        with pytest.raises(bridge.NotServed, match="neither"):
            bridge.paged_mask(mask_function=lambda b, h, q, kv: kv <= q + 1, config=self.config)
