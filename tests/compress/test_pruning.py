"""Pruning: what does nothing goes without a trace, what else goes is made up for, and what cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from penstock_compress.errors import CalibrationUnusable, InvalidRecipe, SourceUnusable, TargetUnusable
from penstock_compress.pruning import Cut, influence, prune, refit, strongest
from penstock_compress.pruning_cli import prune as command
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.compress.conftest import all_tensors
from tests.engine.tiny import TinyModel, make_tiny

PROMPT = torch.randint(8, 199, (2, 20), generator=torch.Generator().manual_seed(11))
HALF = Cut(keep_ffn=0.5, keep_heads=0.5, keep_layers=2)
KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"]
DEAD_BLOCK, HEAD_DIM, GROUPS, PER_GROUP, CHANNELS = 1, 16, 2, 2, 96


def loaded(folder: Path) -> Any:
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(PROMPT).logits.float()


def greedy(folder: Path, count: int) -> list[int]:
    """What the engine says after the first prompt."""
    engine = Engine.from_folder(folder, EngineConfig(kv_pages=16, max_running=1))
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    engine.submit(Request("only", PROMPT[0].tolist(), sampling))
    said: list[int] = []
    while engine.has_work:
        said += [delta.token_id for delta in engine.step().deltas]
    return said


def with_dead_parts(folder: Path, kind: str) -> TinyModel:
    """A model of which one block, one group of heads and every other channel add nothing to what it says."""
    tiny = make_tiny(folder, kind)
    with torch.no_grad():
        for index, block in enumerate(tiny.reference.get_decoder().layers):
            heads, channels = block.self_attn.o_proj, block.mlp.down_proj
            dead = index % GROUPS  # another group in each block
            heads.weight[:, dead * PER_GROUP * HEAD_DIM : (dead + 1) * PER_GROUP * HEAD_DIM] = 0
            channels.weight[:, index % 2 :: 2] = 0
            if index == DEAD_BLOCK:
                heads.weight.zero_()
                channels.weight.zero_()
    tiny.reference.save_pretrained(folder)
    return tiny


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_nothing_goes_and_nothing_changes(tmp_path: Path, tokens: Tensor, kind: str) -> None:
    tiny = with_dead_parts(tmp_path / "source", kind)
    outcome = prune(tmp_path / "source", tmp_path / "smaller", HALF, tokens)
    smaller = loaded(tmp_path / "smaller")
    assert torch.allclose(logits(smaller), logits(tiny.reference), atol=2e-4)
    with torch.inference_mode():
        expected = smaller.generate(PROMPT[:1], max_new_tokens=6, min_new_tokens=6, do_sample=False)[0, 20:].tolist()
    assert greedy(tmp_path / "smaller", 6) == expected
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert (config["head_dim"], config["intermediate_size"], config["num_hidden_layers"]) == (16, 48, 2)
    assert outcome.bytes < 0.8 * outcome.source_bytes
    report = json.loads((tmp_path / "smaller" / "compression.json").read_text())
    assert report["kept_layers"] == [0, 2]
    assert all(layer["output_error"] < 1e-6 for layer in report["layers"])


@pytest.fixture(scope="module")
def smaller(tiny: TinyModel, tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without half of it, made in one go."""
    folder = tmp_path_factory.mktemp("pruned") / "smaller"
    prune(tiny.folder, folder, HALF, tokens)
    return folder


@pytest.mark.parametrize("after", [2, 4, 5])
def test_a_run_that_was_killed_goes_on_and_ends_the_same(
    tiny: TinyModel, tmp_path: Path, tokens: Tensor, smaller: Path, after: int
) -> None:
    def killed(done: int, of: int, what: str) -> None:
        assert of == 3 + 2 + 1
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tiny.folder, tmp_path / "again", HALF, tokens, killed)
    assert not (tmp_path / "again").exists()
    prune(tiny.folder, tmp_path / "again", HALF, tokens)
    whole, again = all_tensors(smaller), all_tensors(tmp_path / "again")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert sorted(path.name for path in smaller.iterdir()) == sorted(
        path.name for path in (tmp_path / "again").iterdir()
    )
    prune(tiny.folder, tmp_path / "again", HALF, tokens)  # which is there, and is left as it is
    with pytest.raises(TargetUnusable, match="is there already"):
        prune(tiny.folder, tmp_path / "again", Cut(keep_ffn=0.5), tokens)


def test_a_cut_of_nothing_is_the_model(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    prune(tiny.folder, target, Cut(), tokens)
    before = all_tensors(tiny.folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in all_tensors(target).items())
    assert torch.equal(logits(loaded(target)), logits(tiny.reference))


def test_blocks_alone_go_whole(tiny: TinyModel, target: Path, tokens: Tensor, smaller: Path) -> None:
    prune(tiny.folder, target, Cut(keep_layers=2), tokens)
    kept = json.loads((target / "compression.json").read_text())["kept_layers"]
    assert kept == json.loads((smaller / "compression.json").read_text())["kept_layers"]
    before, after = all_tensors(tiny.folder), all_tensors(target)
    name = "mlp.down_proj.weight"
    for place, index in enumerate(kept):
        assert torch.equal(after[f"model.layers.{place}.{name}"], before[f"model.layers.{index}.{name}"])


def test_what_stays_makes_up_for_what_goes() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(500, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight, kept = torch.randn(10, 24, generator=generator), torch.arange(0, 24, 2)
    fitted = refit(weight, x.T @ x / 500, kept)
    dropped = (x[:, kept] @ weight[:, kept].T - x @ weight.T).pow(2).sum()
    ours = (x[:, kept] @ fitted.T - x @ weight.T).pow(2).sum()
    best = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution
    least = (x[:, kept] @ best - x @ weight.T).pow(2).sum()
    assert least <= ours < 1.05 * least
    assert ours < 0.7 * dropped


def test_inputs_that_are_zero_do_not_matter() -> None:
    weight = torch.ones(3, 4)
    assert torch.equal(refit(weight, torch.zeros(4, 4), torch.tensor([0, 2])), torch.ones(3, 2))


def test_influence_is_that_of_the_paper() -> None:
    states = [torch.tensor([[1.0, 0.0], [0.0, 2.0]])]
    assert influence(states, states) == pytest.approx(0)
    assert influence(states, [torch.tensor([[0.0, 3.0], [0.0, 1.0]])]) == pytest.approx(0.5)


def test_of_equals_the_first_are_kept_in_their_order() -> None:
    assert strongest(torch.tensor([1.0, 5.0, 1.0, 1.0, 7.0]), 3).tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("field", "cut"),
    [
        ("keep_ffn", {"keep_ffn": 0.0}),
        ("keep_ffn", {"keep_ffn": 1.5}),
        ("keep_ffn", {"keep_ffn": 0.01}),
        ("keep_heads", {"keep_heads": -1.0}),
        ("keep_heads", {"keep_heads": 0.75}),
        ("keep_layers", {"keep_layers": 0}),
        ("keep_layers", {"keep_layers": 4}),
    ],
)
def test_a_cut_that_cannot_be_names_its_field(
    tiny: TinyModel, target: Path, tokens: Tensor, field: str, cut: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        prune(tiny.folder, target, Cut(**cut), tokens)
    assert refused.value.field == field
    assert not target.with_name(f"{target.name}.partial").exists()


def test_the_refusal_of_heads_tells_what_can_be(tiny: TinyModel, target: Path, tokens: Tensor) -> None:
    with pytest.raises(InvalidRecipe, match=r"2 groups.*0\.5, 1; not 0\.75"):
        prune(tiny.folder, target, Cut(keep_heads=0.75), tokens)


def test_models_of_other_builds_are_refused(tmp_path: Path, tokens: Tensor) -> None:
    mixture = make_tiny(tmp_path / "experts", "mixtral")
    with pytest.raises(SourceUnusable, match="is a mixtral model"):
        prune(mixture.folder, tmp_path / "none", HALF, tokens)
    with pytest.raises(CalibrationUnusable, match="samples, length"):
        prune(mixture.folder, tmp_path / "none", HALF, tokens[0])


def test_one_command_does_it_and_tells_a_program(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "smaller"
    text.write_text("# Date Issued => 17.06.2029\n# Invoice Total => EUR 4085.51\n" * 100)
    calibrated = ["--calibration", str(text), "--samples", "4", "--length", "64", "--progress", "json"]
    asked = ["examples/invoices/model", "--out", str(out), "--keep-ffn", "0.5", "--keep-layers", "2"]
    result = CliRunner().invoke(command, [*asked, *calibrated])
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress"] * (len(events) - 1) + ["done"]
    assert events[-1]["recipe"] == {"method": "prune", "keep_ffn": 0.5, "keep_heads": 1.0, "keep_layers": 2}
    assert loaded(out).config.intermediate_size == 192
    result = CliRunner().invoke(command, [*asked, *calibrated, "--keep-heads", "0.3"])
    failed = json.loads(result.stdout.splitlines()[-1])
    assert (failed["event"], failed["field"]) == ("failed", "keep_heads")
    assert result.exit_code == 1
