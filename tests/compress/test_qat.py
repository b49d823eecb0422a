"""Training on a grid: what is trained is what is exported, it loses less than rounding, and a kill changes nothing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from penstock_compress import qat as module
from penstock_compress.compressing import compress
from penstock_compress.errors import SourceUnusable, TargetUnusable
from penstock_compress.fake_quant import FakeQuantLinear, input_grid
from penstock_compress.gptq import nearest
from penstock_compress.grids import Grid, spread
from penstock_compress.learning import open_model
from penstock_compress.lessons import Lesson
from penstock_compress.packing import from_tensors, to_tensors
from penstock_compress.qat import fake_quantize, qat
from penstock_compress.recipe import SCHEMES, Recipe
from penstock_compress.source import Source
from penstock_compress.training import STATE, Training
from penstock_compress.training_cli import qat as command
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tests.compress.conftest import all_tensors
from tests.engine.tiny import TinyModel, make_tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
INT3 = Recipe("int3", group=32)
SHORT = Training(steps=60, batch=8, rate=3e-3, prompts=True)
GRIDS = [pytest.param(replace(scheme.grid, group=32), id=name) for name, scheme in SCHEMES.items()]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; the comparison is to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lessons_of(tokens: Tensor) -> list[Lesson]:
    return [Lesson(tuple(row), 8) for row in tokens.tolist()]


def divergence(reference: Any, folder: Path, tokens: Tensor) -> float:
    """The mean KL of the folder from the reference, its weights restored by compressed-tensors."""
    restored = CompressedTensorsConfig(dequantize=True)
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=restored)
    with torch.inference_mode():
        one, two = (model(tokens).logits.log_softmax(-1) for model in (reference, other.eval()))
    return float((one.exp() * (one - two)).sum(-1).mean())


@pytest.fixture(scope="module")
def trained(tiny: TinyModel, tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at int3, trained without a disturbance."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("qat") / "trained"
    qat(tiny.folder, folder, INT3, SHORT, lessons_of(tokens))
    return folder


def test_training_recovers_half_of_what_rounding_loses(
    tiny: TinyModel, tmp_path: Path, tokens: Tensor, trained: Path
) -> None:
    compress(tiny.folder, tmp_path / "rounded", INT3)
    rounded = divergence(tiny.reference, tmp_path / "rounded", tokens)
    assert divergence(tiny.reference, trained, tokens) < 0.5 * rounded


def test_what_is_exported_is_what_was_trained_to_the_bit(
    tiny: TinyModel, tmp_path: Path, tokens: Tensor, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies while it writes keeps its last step's weights: these, and the file that the next run writes."""

    class Full(Exception):
        pass

    def full(*_: object) -> None:
        raise Full

    with monkeypatch.context() as patched:
        patched.setattr(module, "_block", full)
        with pytest.raises(Full):
            qat(tiny.folder, tmp_path / "again", INT3, SHORT, lessons_of(tokens))
    model = open_model(Source(tiny.folder))
    layers = fake_quantize(model, Source(tiny.folder), INT3)
    kept = torch.load(tmp_path / "again.partial" / STATE, weights_only=True)
    model.load_state_dict(kept["weights"], strict=False)
    qat(tiny.folder, tmp_path / "again", INT3, SHORT, lessons_of(tokens))
    exported = all_tensors(tmp_path / "again")
    assert len(layers) == 3 * 7
    for name, layer in layers.items():
        stored = from_tensors(name, exported, INT3.grid, None)
        ours = layer.rounded()
        assert torch.equal(stored.codes, ours.codes)
        assert torch.equal(stored.scales.scale, ours.scales.scale)
    whole = all_tensors(trained)
    assert all(torch.equal(whole[name], exported[name]) for name in whole)


def test_a_killed_run_goes_on_exactly(tiny: TinyModel, tmp_path: Path, tokens: Tensor, trained: Path) -> None:
    def killed(done: int, of: int, what: str) -> None:
        if done == 56:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat(tiny.folder, tmp_path / "again", INT3, SHORT, lessons_of(tokens), killed)
    steps: list[int] = []
    qat(tiny.folder, tmp_path / "again", INT3, SHORT, lessons_of(tokens), lambda done, of, what: steps.append(done))
    assert steps == list(range(51, 61))
    whole, again = all_tensors(trained), all_tensors(tmp_path / "again")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        path.name for path in (tmp_path / "again").iterdir()
    )


def test_what_was_kept_and_is_damaged_is_said(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    def killed(done: int, of: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat(tiny.folder, target, INT3, SHORT, lessons_of(tokens), killed)
    (target.with_name("smaller.partial") / STATE).write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(TargetUnusable, match="to begin anew"):
        qat(tiny.folder, target, INT3, SHORT, lessons_of(tokens))
    with pytest.raises(TargetUnusable, match="another run"):
        qat(tiny.folder, target, INT3, replace(SHORT, steps=61), lessons_of(tokens))


def test_embeddings_and_head_stay_and_the_config_tells_the_format(tiny: TinyModel, trained: Path) -> None:
    before, after = all_tensors(tiny.folder), all_tensors(trained)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(
        before["model.layers.0.input_layernorm.weight"], after["model.layers.0.input_layernorm.weight"]
    )
    described = json.loads((trained / "config.json").read_text())["quantization_config"]
    assert described["config_groups"]["group_0"]["weights"]["num_bits"] == 3
    assert json.loads((trained / "compression.json").read_text())["recipe"]["method"] == "qat"


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_what_is_stored(grid: Grid, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(96, 40)
    layer = FakeQuantLinear(linear, grid, dtype, None)
    start = nearest(linear.weight.detach(), grid, dtype)
    assert torch.equal(layer.rounded().codes.float(), start.codes.float())
    with torch.no_grad():
        layer.weight += 0.05 * torch.randn_like(layer.weight)
        layer.growth += 0.1 * torch.randn_like(layer.growth)
    stored = from_tensors("a", to_tensors("a", layer.rounded(), None), grid, None)
    x = torch.randn(5, 96)
    assert torch.equal(layer(x), nn.functional.linear(x, stored.dequantize(), linear.bias))


@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_are_those_of_learned_step_sizes(grid: Grid) -> None:
    """The paper's, by autograd: rounding is a number that is added, and its sum with what is rounded is cut."""
    torch.manual_seed(3)
    layer = FakeQuantLinear(nn.Linear(96, 40, bias=False), grid, torch.float32, None)
    with torch.no_grad():
        layer.growth -= 0.5  # so that some numbers lie beyond the ends
    given = torch.randn(40, 96)
    layer(torch.eye(96)).T.mul(given).sum().backward()
    weight, growth = layer.weight.detach().requires_grad_(), layer.growth.detach().requires_grad_()
    scale = spread(layer.first * growth.exp(), weight.shape, grid)
    rounded = layer.rounded()
    zero = 0 if rounded.scales.zero is None else spread(rounded.scales.zero.float(), weight.shape, grid)
    least, most = (-448, 448) if grid.kind == "float" else (grid.least - 0.5 - zero, grid.most + 0.5 - zero)
    quotient = weight / scale
    inside = (quotient >= least) & (quotient <= most)
    steps = rounded.codes.float() - zero
    assert not inside.all()
    ((torch.where(inside, quotient + (steps - quotient).detach(), steps) * scale) * given).sum().backward()
    assert torch.allclose(layer.weight.grad, weight.grad, atol=1e-5)
    assert torch.allclose(layer.growth.grad, growth.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp8-block"])
def test_inputs_are_rounded_as_they_will_be_and_their_gradient_passes(scheme: str) -> None:
    grid, activations = SCHEMES[scheme].grid, SCHEMES[scheme].activations
    layer = FakeQuantLinear(nn.Linear(256, 16, bias=False), grid, torch.float32, activations)
    x = torch.randn(2, 3, 256, requires_grad=True)
    out = layer(x)
    weight, runs = layer.rounded().dequantize(), 2 if scheme == "fp8-block" else 1
    rows = x.detach().view(6 * runs, -1)
    largest = 448.0 if grid.kind == "float" else 127.5
    scale = rows.abs().amax(1, keepdim=True) / largest
    codes = (
        (rows / scale).to(torch.float8_e4m3fn).float()
        if grid.kind == "float"
        else (rows / scale).round().clamp(-128, 127)
    )
    assert torch.allclose(out, (codes * scale).view(2, 3, 256) @ weight.T, atol=1e-5)
    out.sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x), atol=1e-5)
    assert input_grid(SCHEMES["int4"].grid, None) is None


def test_rows_that_groups_do_not_divide_are_trained_as_they_are(tmp_path: Path, tokens: Tensor) -> None:
    odd = make_tiny(tmp_path / "odd", "llama", intermediate_size=80, num_hidden_layers=1)
    qat(odd.folder, tmp_path / "smaller", INT3, replace(SHORT, steps=2), lessons_of(tokens))
    name = "model.layers.0.mlp.down_proj"
    described = json.loads((tmp_path / "smaller" / "config.json").read_text())["quantization_config"]
    assert described["ignore"] == ["lm_head", name]
    after = all_tensors(tmp_path / "smaller")[f"{name}.weight"]
    assert not torch.equal(after, all_tensors(odd.folder)[f"{name}.weight"])


def test_mixtures_of_experts_are_refused(tmp_path: Path, tokens: Tensor) -> None:
    mixture = make_tiny(tmp_path / "experts", "qwen3_moe", moe_intermediate_size=64, num_experts=4)
    with pytest.raises(SourceUnusable, match="only 'rtn'"):
        qat(mixture.folder, tmp_path / "none", INT3, SHORT, lessons_of(tokens))


def test_one_command_trains_and_tells_a_program(tmp_path: Path) -> None:
    text, out = tmp_path / "text.jsonl", tmp_path / "int3"
    text.write_text('{"messages": [{"role": "user", "content": "Total 12.50 EUR"}]}\n' * 2)
    asked = ["examples/invoices/model", "--out", str(out), "--scheme", "int3", "--group", "64", "--data", str(text)]
    result = CliRunner().invoke(command, [*asked, "--steps", "2", "--batch", "2", "--most", "8", "--progress", "json"])
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0, result.output
    assert {event["what"].split()[0] for event in events[:-1]} == {"answers", "loss"}
    assert events[-1]["event"] == "done"
    assert (events[-1]["recipe"]["method"], events[-1]["recipe"]["steps"]) == ("qat", 2)
    result = CliRunner().invoke(command, [*asked, "--steps", "0", "--progress", "json"])
    failed = json.loads(result.stdout.splitlines()[-1])
    assert (failed["event"], failed["field"]) == ("failed", "steps")
