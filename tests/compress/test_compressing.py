"""From a folder to a smaller folder, which `transformers` and the library compressed-tensors load."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock_compress import CalibrationUnusable, InvalidRecipe, Recipe, SourceUnusable, TargetUnusable, compress
from penstock_compress.calibration import read_tokens
from penstock_compress.grids import Grid
from penstock_compress.packing import from_tensors
from penstock_compress.recipe import SCHEMES
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tests.compress.conftest import all_tensors
from tests.engine.tiny import TinyModel, make_tiny

PROMPT = torch.randint(8, 199, (3, 20), generator=torch.Generator().manual_seed(11))
LARGEST_KL = {"int3": 1.5, "int4": 0.7, "int8": 0.03, "fp8": 0.15}  # of these random models, whose logits are steep
# That it is to be restored, and not run compressed, is what is told to `transformers`, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")


def recipe(scheme: str, method: str = "rtn", **others: Any) -> Recipe:
    return Recipe(scheme, method, group=32, **others)  # type: ignore[arg-type]


def logprobs(model: Any) -> Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(PROMPT).logits.float(), -1)


def divergence(reference: Any, other: Any) -> float:
    one, two = logprobs(reference), logprobs(other)
    return float((one.exp() * (one - two)).sum(-1).mean())


def loaded(folder: Path) -> Any:
    """The folder in `transformers`, its weights restored by compressed-tensors."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    ).eval()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_transformers_loads_every_scheme_and_answers_as_before(tiny: TinyModel, target: Path, scheme: str) -> None:
    outcome = compress(tiny.folder, target, recipe(scheme))
    other = loaded(target)
    assert divergence(tiny.reference, other) < LARGEST_KL[scheme.partition("-")[0]]
    name = "model.layers.1.mlp.down_proj"
    ours = from_tensors(name, all_tensors(target), recipe(scheme).grid, recipe(scheme).activations).dequantize()
    assert torch.allclose(other.get_submodule(name).weight, ours, atol=1e-6)
    assert outcome.bytes < outcome.source_bytes


@pytest.mark.parametrize("scheme", ["int4", "int8", "fp8"])
def test_transformers_runs_them_compressed_too(tiny: TinyModel, target: Path, scheme: str) -> None:
    compress(tiny.folder, target, recipe(scheme))
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert divergence(tiny.reference, model) < 2 * LARGEST_KL[scheme]


def test_bytes_are_those_of_arithmetic(tmp_path: Path) -> None:
    wide = make_tiny(tmp_path / "wide", "llama", hidden_size=256, intermediate_size=512, head_dim=64)
    outcome = compress(wide.folder, tmp_path / "int4", Recipe("int4"))
    numbers = 3 * (256 * (256 + 256 + 2 * 128) + 3 * 256 * 512)
    left = sum(tensor.numel() * 4 for name, tensor in all_tensors(tmp_path / "int4").items() if "proj" not in name)
    assert outcome.bytes == pytest.approx(numbers / 2 + numbers / 128 * 4 + left, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "phi3"])  # biases, norms of 1 + w, fused projections
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_models_stay_closer(tmp_path: Path, tokens: Tensor, kind: str, method: str) -> None:
    source = make_tiny(tmp_path / "source", kind, intermediate_size=128)
    with torch.no_grad():
        for name, weight in source.reference.named_parameters():
            if name.endswith("layernorm.weight"):
                weight[5::20] *= 12  # inputs that stick out, as those of trained models do
    source.reference.save_pretrained(source.folder)
    compress(source.folder, tmp_path / "plain", recipe("int4"))
    compress(source.folder, tmp_path / "better", recipe("int4", method), tokens)
    others = torch.randint(8, 199, (24, 32), generator=torch.Generator().manual_seed(4))
    errors = {name: _errors(tmp_path / name, source.folder, others) for name in ("plain", "better")}
    assert errors["better"] < errors["plain"] * 0.9


def _errors(folder: Path, source: Path, tokens: Tensor) -> float:
    """How far the last hidden states are from the source's, in squares over their size."""
    states = []
    for model in (AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), loaded(folder)):
        with torch.inference_mode():
            states.append(model.get_decoder()(tokens).last_hidden_state)
    return float((states[0] - states[1]).pow(2).sum() / states[0].pow(2).sum())


def test_smoothquant_is_the_same_model_before_rounding(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    compress(tiny.folder, target, recipe("int8", "smoothquant"), tokens)
    assert divergence(tiny.reference, loaded(target)) < LARGEST_KL["int8"]
    before, after = all_tensors(tiny.folder), all_tensors(target)
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.allclose(before[norm], after[norm])


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    tiny: TinyModel, tmp_path: Path, tokens: Tensor, method: str
) -> None:
    class Killed(Exception):
        pass

    def killed_after(parts: int) -> Any:
        def report(done: int, total: int, _what: str) -> None:
            assert total == 4
            if done == parts:
                raise Killed

        return report

    compress(tiny.folder, tmp_path / "whole", recipe("int4", method), tokens)
    for parts in (1, 3):
        with pytest.raises(Killed):
            compress(tiny.folder, tmp_path / "again", recipe("int4", method), tokens, killed_after(parts))
        assert not (tmp_path / "again").exists()
    compress(tiny.folder, tmp_path / "again", recipe("int4", method), tokens)
    whole, again = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "again")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == sorted(
        path.name for path in (tmp_path / "again").iterdir()
    )
    assert not (tmp_path / "again.partial").exists()


def test_another_recipe_does_not_go_on_with_it(tiny: TinyModel, target: Path) -> None:
    def killed(_done: int, _total: int, _what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny.folder, target, recipe("int4"), report=killed)
    with pytest.raises(TargetUnusable, match="another run"):
        compress(tiny.folder, target, recipe("int8"))


def test_the_report_tells_recipe_source_and_what_each_layer_lost(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    compress(tiny.folder, target, recipe("int4", "gptq"), tokens)
    told = json.loads((target / "compression.json").read_text())
    assert told["recipe"]["scheme"] == "int4"
    assert len(told["source_sha256"]) == 64
    assert told["bytes"] < told["source_bytes"]
    assert len(told["layers"]) == 3 * 7
    assert all(0 < layer["output_error"] < 0.1 for layer in told["layers"])


def test_rows_that_groups_do_not_divide_stay_and_are_named(tmp_path: Path) -> None:
    odd = make_tiny(tmp_path / "odd", "llama", intermediate_size=80)
    compress(odd.folder, tmp_path / "smaller", recipe("int4"))
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    assert "model.layers.0.mlp.down_proj" in config["quantization_config"]["ignore"]
    assert divergence(odd.reference, loaded(tmp_path / "smaller")) < LARGEST_KL["int4"]


def test_experts_are_rounded_and_their_routers_stay(tmp_path: Path, tokens: Tensor) -> None:
    mixture = make_tiny(tmp_path / "experts", "qwen3_moe", moe_intermediate_size=64, num_experts=4)
    compress(mixture.folder, tmp_path / "smaller", recipe("int8"))
    names = all_tensors(tmp_path / "smaller")
    assert "model.layers.0.mlp.experts.2.down_proj.weight_scale" in names
    assert "model.layers.0.mlp.gate.weight_scale" not in names
    with pytest.raises(SourceUnusable, match="only 'rtn'"):
        compress(mixture.folder, tmp_path / "other", recipe("int4", "gptq"), tokens)


def test_what_cannot_be_is_said(tiny: TinyModel, tmp_path: Path, tokens: Tensor) -> None:
    compress(tiny.folder, tmp_path / "once", recipe("int8"))
    with pytest.raises(SourceUnusable, match="compressed already"):
        compress(tmp_path / "once", tmp_path / "twice", recipe("int4"))
    with pytest.raises(TargetUnusable, match="is there already"):
        compress(tiny.folder, tmp_path / "once", recipe("int4"))
    with pytest.raises(SourceUnusable, match=r"config\.json"):
        compress(tmp_path, tmp_path / "none", recipe("int8"))
    with pytest.raises(CalibrationUnusable, match="needs calibration"):
        compress(tiny.folder, tmp_path / "none", recipe("int4", "gptq"))
    shutil.copytree(tiny.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(SourceUnusable, match="safetensors"):
        compress(tmp_path / "damaged", tmp_path / "none", recipe("int8"))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("scheme", {"scheme": "int5"}),
        ("method", {"scheme": "int4", "method": "magic"}),
        ("method", {"scheme": "int4", "method": "smoothquant"}),
        ("act_order", {"scheme": "int4", "act_order": True}),
        ("damping", {"scheme": "int4", "method": "gptq", "damping": 0}),
        ("samples", {"scheme": "int4", "method": "gptq", "samples": 0}),
        ("group", {"scheme": "int4", "group": 7}),
    ],
)
def test_a_recipe_that_cannot_be_names_its_field(field: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        Recipe(**wrong)
    assert refused.value.field == field


def test_text_becomes_sequences_drawn_by_the_seed(tmp_path: Path) -> None:
    model, text = Path("examples/invoices/model"), tmp_path / "text.jsonl"
    lines = [{"text": f"# Number => {number}"} for number in range(200)]
    lines.append({"messages": [{"role": "user", "content": "Total 12.50"}]})
    text.write_text("\n".join(map(json.dumps, lines)))
    drawn = [read_tokens(model, text, samples=4, length=32, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].shape == (4, 32)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(CalibrationUnusable, match="are asked for"):
        read_tokens(model, text, samples=4000, length=32, seed=0)
    text.write_text('{"other": 1}')
    with pytest.raises(CalibrationUnusable, match="line 1"):
        read_tokens(model, text, samples=1, length=1, seed=0)
    with pytest.raises(CalibrationUnusable, match="cannot be read"):
        read_tokens(model, tmp_path / "none.txt", samples=1, length=1, seed=0)


def test_a_grid_of_bits_has_its_ends() -> None:
    assert (Grid(3).least, Grid(3).most) == (-4, 3)
