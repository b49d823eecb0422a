"""Checkpoints whose weights are stored in fewer bits, in every published layout, against `transformers` on the same
weights restored: on a CPU's kernels, and on a GPU's in the interpreter."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import penstock_engine.engine as engine_module
import pytest
import torch
from penstock_compress import Recipe, compress
from penstock_compress.gptq import nearest
from penstock_compress.grids import Grid
from penstock_compress.packing import from_tensors, to_tensors
from penstock_engine import Engine, EngineConfig, InvalidConfig
from penstock_engine.errors import ModelCorrupt, ModelUnsupported
from penstock_engine.kernel_choice import choose_kernels
from penstock_engine.models import CausalLM
from penstock_kernels.quant_formats import AWQ_ORDER, Int4Codes, pack_nibbles
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engine.test_gpu_formats import e4m3 as e4m3
from tests.engine.tiny import TinyModel, compiled_only, make_tiny, random_prompt

PROMPT = random_prompt(12, seed=5)
WIDE = {"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
ROUNDED_INPUTS = 0.12  # in a log probability, at most: inputs of 8 bits, of steep random models
EXACT_INPUTS = 2e-3
INPUTS = {"W8A8": ROUNDED_INPUTS, "W4A16": EXACT_INPUTS, "FP8": 0.4, "FP8 blocks": 0.4}
Tensors = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny(tmp_path_factory.mktemp("plain") / "model", "qwen2", **WIDE)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines choose as they would on an H200, for a model that lies on the CPU."""

    def chosen(model: CausalLM, config: EngineConfig, **given: Any) -> None:
        choose_kernels(model, replace(config, device="cuda"), **given)

    monkeypatch.setattr(engine_module, "choose_kernels", chosen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def engine_of(folder: Path, **settings: Any) -> Engine:
    return Engine.from_folder(folder, EngineConfig(**{"dtype": "float32", "kv_pages": 8, **settings}))


def furthest(plain: TinyModel, folder: Path, restored: Tensors) -> float:
    """The largest difference of a token's log probability from that of `plain` with these weights in its layers."""
    reference = plain.reference
    before = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    try:
        reference.load_state_dict(restored, strict=False)
        theirs = plain.logprobs(PROMPT)[range(len(PROMPT) - 1), PROMPT[1:]]
    finally:
        reference.load_state_dict(before, strict=False)
    return float((torch.tensor(engine_of(folder).score(PROMPT)) - theirs).abs().max())


def made(plain: TinyModel, folder: Path, scheme: str) -> Tensors:
    """Store `plain` in `scheme`; its layers' weights, restored."""
    recipe = Recipe(scheme, group=64)
    compress(plain.folder, folder, recipe)
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    layers = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    assert len(layers) == 7
    return {
        f"{name}.weight": from_tensors(name, stored, recipe.grid, recipe.activations).dequantize() for name in layers
    }


def rewritten(plain: TinyModel, folder: Path, told: dict[str, Any], write: Callable[[str, Tensor], Tensors]) -> None:
    """Store `plain` with what `write` makes of each layer's weight."""
    folder.mkdir()
    config = json.loads((plain.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    stored: Tensors = {}
    for name, tensor in load_file(plain.folder / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        stored |= write(layer, tensor) if layer.endswith("_proj") else {name: tensor}
    save_file(stored, folder / "model.safetensors")


def int4_of(weight: Tensor, group: int = 64) -> Int4Codes:
    grid = Grid(4, symmetric=False, scope="group", group=group)
    rounded = nearest(weight, grid, torch.float32)
    assert rounded.scales.zero is not None
    codes, zeros = rounded.codes.int() + 8, rounded.scales.zero.int() + 8
    return Int4Codes(codes.to(torch.uint8), rounded.scales.scale, zeros.to(torch.uint8))


def gptq(plain: TinyModel, folder: Path, version: int, ordered: bool, told_version: int | None = None) -> Tensors:
    """Store `plain` as GPTQ, which says that it is `told_version`; its layers' weights, restored."""
    restored: Tensors = {}

    def write(layer: str, weight: Tensor) -> Tensors:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(weight.shape[1]))
        group = torch.empty_like(order)
        group[order] = torch.arange(len(order)) // 64
        codes = int4_of(weight[:, order] if ordered else weight)
        back = torch.argsort(order) if ordered else torch.arange(len(order))
        restored[f"{layer}.weight"] = codes.dequantize()[:, back]
        zeros = (codes.zeros.T.int() - (1 if version == 1 else 0)) & 15
        return {
            f"{layer}.qweight": pack_nibbles(codes.codes[:, back].T.contiguous(), 0),
            f"{layer}.qzeros": pack_nibbles(zeros.contiguous(), 1),
            f"{layer}.scales": codes.scales.T.contiguous(),
            f"{layer}.g_idx": (group if ordered else torch.arange(len(order)) // 64).int(),
        }

    told = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": ordered}
    named = {"checkpoint_format": "gptq_v2"} if (told_version or version) == 2 else {}
    rewritten(plain, folder, told | named, write)
    return restored


def awq(plain: TinyModel, folder: Path) -> Tensors:
    """Store `plain` as AWQ; its layers' weights, restored."""
    restored: Tensors = {}

    def write(layer: str, weight: Tensor) -> Tensors:
        codes = int4_of(weight)
        restored[f"{layer}.weight"] = codes.dequantize()
        return {
            f"{layer}.qweight": pack_nibbles(codes.codes.T.contiguous(), 1, AWQ_ORDER),
            f"{layer}.qzeros": pack_nibbles(codes.zeros.T.contiguous(), 1, AWQ_ORDER),
            f"{layer}.scales": codes.scales.T.contiguous(),
        }

    rewritten(plain, folder, {"quant_method": "awq", "bits": 4, "version": "gemm"}, write)
    return restored


def told_of(folder: Path, **others: Any) -> None:
    """Add to what a checkpoint says of its rounding."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= others
    (folder / "config.json").write_text(json.dumps(config))


def tensors_of(folder: Path) -> tuple[Path, Tensors]:
    """The one file that holds its first layer, and all that is in it."""
    found = {path: load_file(path) for path in folder.glob("*.safetensors")}
    return next((path, held) for path, held in found.items() if any("layers.0.self_attn" in name for name in held))


@compiled_only
class TestOnACpu:
    @pytest.mark.parametrize(
        ("scheme", "kind", "bits"),
        [
            ("int8", "Int8", None),
            ("int8-weights", "Int8", None),
            ("int4", "Int4", 4 + 16 / 64),
            ("int4-asym", "Int4 with zeros", 4 + 24 / 64),
            ("int4-channel", "Int4", None),
            ("int3", "Int3", 3 + 16 / 64),
            ("int3-asym", "Int3 with zeros", 3 + 24 / 64),
            ("fp8", "Float8", None),
            ("fp8-tensor", "Float8", None),
            ("fp8-block", "Float8", None),
        ],
    )
    def test_it_runs_the_codes_themselves(
        self, plain: TinyModel, tmp_path: Path, scheme: str, kind: str, bits: float | None
    ) -> None:
        restored = made(plain, tmp_path / scheme, scheme)
        assert furthest(plain, tmp_path / scheme, restored) < (INPUTS["FP8"] if "fp8" in scheme else ROUNDED_INPUTS)
        told = engine_of(tmp_path / scheme).kernels
        assert told[kind] == "4"
        if bits is not None:
            numbers = sum(weight.numel() for weight in restored.values())
            assert f"{kind} {int(numbers * bits / 8)}," in told["bytes held"]

    @pytest.mark.parametrize("scheme", ["int8", "int4-channel", "int3", "fp8"])
    def test_logits_are_those_of_transformers_with_compressed_tensors(
        self, plain: TinyModel, tmp_path: Path, scheme: str
    ) -> None:
        """Which rounds the inputs of `int8` and `fp8` too, those of whole numbers by a slightly other step."""
        made(plain, tmp_path / scheme, scheme)
        theirs = replace(plain, folder=tmp_path / scheme, reference=opened(tmp_path / scheme)).logprobs(PROMPT)
        ours = torch.tensor(engine_of(tmp_path / scheme).score(PROMPT))
        off = float((ours - theirs[range(len(PROMPT) - 1), PROMPT[1:]]).abs().max())
        assert off < (1e-4 if scheme == "fp8" else ROUNDED_INPUTS)

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("ordered", [False, True])
    def test_gptq(self, plain: TinyModel, tmp_path: Path, version: int, ordered: bool) -> None:
        restored = gptq(plain, tmp_path / "gptq", version, ordered)
        assert furthest(plain, tmp_path / "gptq", restored) < ROUNDED_INPUTS
        assert engine_of(tmp_path / "gptq").kernels["Int4 with zeros"] == "4"

    def test_zeros_that_are_off_by_one_are_seen(self, plain: TinyModel, tmp_path: Path) -> None:
        restored = gptq(plain, tmp_path / "gptq", 2, ordered=False, told_version=1)
        assert furthest(plain, tmp_path / "gptq", restored) > 4 * ROUNDED_INPUTS

    def test_awq(self, plain: TinyModel, tmp_path: Path) -> None:
        assert furthest(plain, tmp_path / "awq", awq(plain, tmp_path / "awq")) < ROUNDED_INPUTS

    def test_layers_in_different_formats(self, plain: TinyModel, tmp_path: Path) -> None:
        """Also scales for inputs, which are coarser than those found for each token, and are not needed."""
        restored: Tensors = {}

        def write(layer: str, weight: Tensor) -> Tensors:
            whole = "self_attn" in layer
            rounded = nearest(weight, Grid(8, "float") if whole else Grid(4, scope="group", group=64), torch.float32)
            restored[f"{layer}.weight"] = rounded.dequantize()
            scales = {f"{layer}.input_scale": torch.ones(1)} if whole else {}
            return to_tensors(layer, rounded, "fp8" if whole else None) | scales

        told = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
        rewritten(plain, tmp_path / "mixed", told, write)
        assert furthest(plain, tmp_path / "mixed", restored) < INPUTS["FP8"]
        kernels = engine_of(tmp_path / "mixed").kernels
        assert (kernels["Float8"], kernels["Int4"]) == ("2", "2")

    @pytest.mark.parametrize(("kind", "kept"), [("int", "int8"), ("float", "fp8")])
    def test_a_checkpoint_asks_for_8_bits_of_k_and_v(
        self, plain: TinyModel, tmp_path: Path, kind: str, kept: str
    ) -> None:
        folder = tmp_path / "kv"
        made(plain, folder, "int8")
        file, tensors = tensors_of(folder)
        scales = {f"model.layers.0.self_attn.{side}_scale": torch.ones(1) for side in "kv"}
        save_file(tensors | scales, file)
        told_of(folder, kv_cache_scheme={"num_bits": 8, "type": kind, "symmetric": True, "strategy": "tensor"})
        engine = engine_of(folder)
        assert (engine.kernels["kv"], engine.config.kv_dtype, engine._cache.kept_as) == (kept, kept, kept)  # type: ignore[attr-defined]
        other = "fp8" if kept == "int8" else "int8"
        assert engine_of(folder, kv_dtype=other).kernels["kv"] == other
        as_given, asked = (engine_of(folder, kv_dtype=each).score(PROMPT) for each in ("auto", kept))
        assert as_given == asked


def opened(folder: Path) -> Any:
    """As `transformers` reads it, with compressed-tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@compiled_only
def test_experts_and_models_of_other_names_too(tmp_path: Path) -> None:
    mixture = make_tiny(tmp_path / "plain", "mixtral", **{**WIDE, "num_local_experts": 2, "num_experts_per_tok": 1})
    compress(mixture.folder, tmp_path / "int8", Recipe("int8"))
    ours = torch.tensor(engine_of(tmp_path / "int8").score(PROMPT))
    theirs = mixture.logprobs(PROMPT)[range(len(PROMPT) - 1), PROMPT[1:]]
    assert float((ours - theirs).abs().mean()) < 0.2


@pytest.mark.usefixtures("on_a_gpu")
class TestOnAGpu:
    @pytest.mark.parametrize(
        ("scheme", "kind"),
        [
            ("int8", "W8A8"),
            ("int4", "W4A16"),
            ("int4-asym", "W4A16"),
            ("int3-asym", "W4A16"),
            ("fp8", "FP8"),
            ("fp8-tensor", "FP8"),
            ("fp8-block", "FP8 blocks"),
        ],
    )
    def test_every_layer_runs_on_the_kernel_of_its_format(
        self, plain: TinyModel, tmp_path: Path, scheme: str, kind: str
    ) -> None:
        restored = made(plain, tmp_path / scheme, scheme)
        assert furthest(plain, tmp_path / scheme, restored) < INPUTS[kind]
        # A layer of a single block is one of channels that all have its scale.
        assert engine_of(tmp_path / scheme).kernels[kind] == ("2" if kind == "FP8 blocks" else "4")

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("ordered", [False, True])
    def test_gptq(self, plain: TinyModel, tmp_path: Path, version: int, ordered: bool) -> None:
        assert furthest(plain, tmp_path / "gptq", gptq(plain, tmp_path / "gptq", version, ordered)) < EXACT_INPUTS

    def test_awq(self, plain: TinyModel, tmp_path: Path) -> None:
        assert furthest(plain, tmp_path / "awq", awq(plain, tmp_path / "awq")) < EXACT_INPUTS

    def test_e4m3_needs_a_gpu_that_has_it(
        self, plain: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(plain, tmp_path / "fp8", "fp8")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        with pytest.raises(ModelUnsupported, match=r"8\.0"):
            engine_of(tmp_path / "fp8")

    def test_parts_of_different_orders_are_refused(self, plain: TinyModel, tmp_path: Path) -> None:
        def write(layer: str, weight: Tensor) -> Tensors:
            codes = int4_of(weight)
            group = torch.arange(weight.shape[1]) // 64
            return {
                f"{layer}.qweight": pack_nibbles(codes.codes.T.contiguous(), 0),
                f"{layer}.qzeros": pack_nibbles(codes.zeros.T.contiguous(), 1),
                f"{layer}.scales": codes.scales.T.contiguous(),
                f"{layer}.g_idx": (group.flip(0) if "k_proj" in layer else group).int(),
            }

        rewritten(plain, tmp_path / "gptq", {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, write)
        with pytest.raises(ModelUnsupported, match="g_idx"):
            engine_of(tmp_path / "gptq")


@compiled_only
class TestRefusals:
    def test_what_a_cpu_has_no_kernel_for(self, plain: TinyModel, tmp_path: Path) -> None:
        made(plain, tmp_path / "fp8", "fp8")
        file, tensors = tensors_of(tmp_path / "fp8")
        name = "model.layers.0.self_attn.o_proj.weight"
        codes = tensors[name].view(torch.uint8).clone()
        codes[1, 2] = 0x7F
        save_file(tensors | {name: codes.view(torch.float8_e4m3fn)}, file)
        with pytest.raises(ModelUnsupported, match=r"layers\.0\.self_attn\.o_proj.* NaN"):
            engine_of(tmp_path / "fp8")

    @pytest.mark.parametrize(
        "scheme", [{"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int", "symmetric": False}]
    )
    def test_k_and_v_in_other_ways(self, plain: TinyModel, tmp_path: Path, scheme: Any) -> None:
        made(plain, tmp_path / "int8", "int8")
        told_of(tmp_path / "int8", kv_cache_scheme=scheme)
        with pytest.raises(ModelUnsupported, match="kv_cache_scheme"):
            engine_of(tmp_path / "int8")

    def test_other_settings_that_do_not_go_with_it(self, plain: TinyModel, tmp_path: Path) -> None:
        made(plain, tmp_path / "int8", "int8")
        with pytest.raises(InvalidConfig, match="rounded its weights already"):
            engine_of(tmp_path / "int8", quantization="int4")
        with pytest.raises(InvalidConfig, match="must be compiled"):
            engine_of(tmp_path / "int8", kernels="torch")

    @pytest.mark.parametrize("lost", ["weight_scale", "weight_packed", "weight_shape"])
    def test_a_tensor_that_is_lacking(self, plain: TinyModel, tmp_path: Path, lost: str) -> None:
        made(plain, tmp_path / "int4", "int4")
        name = f"model.layers.0.mlp.up_proj.{lost}"
        file = next(path for path in (tmp_path / "int4").glob("*.safetensors") if name in load_file(path))
        save_file({other: tensor for other, tensor in load_file(file).items() if other != name}, file)
        with pytest.raises(ModelCorrupt, match=lost):
            engine_of(tmp_path / "int4")

    def test_a_layer_that_is_rounded_in_part(self, plain: TinyModel, tmp_path: Path) -> None:
        def write(layer: str, weight: Tensor) -> Tensors:
            if layer.endswith("k_proj"):
                return {f"{layer}.weight": weight}
            rounded = nearest(weight, Grid(8), torch.float32)
            return {f"{layer}.weight": rounded.codes, f"{layer}.weight_scale": rounded.scales.scale}

        told = {"quant_method": "compressed-tensors", "format": "int-quantized"}
        rewritten(plain, tmp_path / "half", told, write)
        with pytest.raises(ModelUnsupported, match="k_proj is not"):
            engine_of(tmp_path / "half")

    @pytest.mark.parametrize(
        ("told", "word"),
        [
            ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
            ({"quant_method": "gptq", "bits": 3}, "bits"),
            ({"quant_method": "awq", "bits": 4, "version": "marlin"}, "marlin"),
            ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
            ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "weight_block_size"),
        ],
    )
    def test_a_format_that_is_not_known(self, plain: TinyModel, tmp_path: Path, told: Any, word: str) -> None:
        rewritten(plain, tmp_path / "other", told, lambda layer, weight: {f"{layer}.weight": weight})
        with pytest.raises(ModelUnsupported, match=word):
            engine_of(tmp_path / "other")
