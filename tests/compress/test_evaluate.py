"""`penstock evaluate`: a model beside itself, beside a damaged one, and what cannot be."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from penstock_compress import answering
from penstock_compress.errors import EvaluationDataUnusable, ModelRefused, ModelsDiffer
from penstock_compress.evaluate_cli import evaluate as command
from penstock_compress.evaluating import Steps, evaluate
from penstock_compress.evaluation_data import EvaluationData
from safetensors.torch import load_file, save_file

from examples.invoices.held_out import write_held_out
from tests.engine.tiny import TinyModel

MODEL = Path("examples/invoices/model")
COUNT = 6


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "held-out.jsonl"
    write_held_out(file, COUNT)
    return file


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with one block's output turned round."""
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"].neg_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def _short_rounds() -> Iterator[None]:
    """Speed is measured, and is not what this is about."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answering, "AT_ONCE", 4)
        yield


@pytest.fixture(scope="module")
def told(held_out: Path, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a program is told of the damaged model, by the command."""
    kept = tmp_path_factory.mktemp("told") / "figures.json"
    arguments = [str(damaged), "--against", str(MODEL), "--data", str(held_out), "--progress", "json"]
    result = CliRunner().invoke(command, [*arguments, "--json", str(kept)])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert json.loads(kept.read_text()) == events[-1]["figures"]
    return events


def test_progress_ends_where_it_said(told: list[dict[str, Any]]) -> None:
    *progress, done = told
    assert {each["event"] for each in progress} == {"progress"}
    assert done["event"] == "done"
    assert progress[0]["done"] == 0
    assert [each["done"] for each in progress] == sorted(each["done"] for each in progress)
    assert {each["of"] for each in progress} == {progress[-1]["done"]}
    assert list(dict.fromkeys(each["what"] for each in progress)) == ["loading", "answers", "distributions", "speed"]


def test_a_damaged_model_is_seen_to_be(told: list[dict[str, Any]]) -> None:
    figures = told[-1]["figures"]
    candidate, against = figures["candidate"], figures["against"]
    assert against["exact_match"]["value"] >= 5 / 6
    assert candidate["exact_match"]["value"] == 0
    assert figures["flips"]["right_to_wrong"] == round(against["exact_match"]["value"] * COUNT)
    assert candidate["perplexity"]["value"] > 1.5 * against["perplexity"]["value"]
    ratio = candidate["perplexity"]["value"] / against["perplexity"]["value"]
    assert figures["divergence"]["perplexity_ratio"]["value"] == pytest.approx(ratio)
    assert figures["divergence"]["mean"]["value"] > 0.1
    assert figures["divergence"]["same_top"]["value"] < 0.9
    assert figures["sequences"] == figures["answers"] == COUNT
    assert sum(each["count"] for each in figures["by_position"]) == figures["positions"]


def test_noise_is_small_beside_damage(told: list[dict[str, Any]]) -> None:
    noise = told[-1]["figures"]["noise"]
    assert noise["divergence"]["mean"]["value"] < 1e-4
    assert noise["divergence"]["same_top"]["value"] > 0.99
    assert noise["flips"]["answers"] == COUNT


def test_sizes_are_those_of_the_files_and_of_what_is_held(told: list[dict[str, Any]]) -> None:
    for each in (told[-1]["figures"]["candidate"], told[-1]["figures"]["against"]):
        assert each["bytes"] == pytest.approx((MODEL / "model.safetensors").stat().st_size, abs=1000)
        assert each["bytes"] * 0.9 < each["held_bytes"] < each["bytes"] * 1.3  # a tied head may be held twice
        assert each["kv_token_bytes"] == 4 * 2 * 2 * 32 * 2  # layers, K and V, heads, width, bytes
        assert each["tokens_per_second"] > 0


def test_a_model_is_itself(held_out: Path) -> None:
    data = EvaluationData.read(held_out, MODEL, context=1024, sequences=2)
    found = evaluate(MODEL, MODEL, data, noise=False)
    assert found.noise is None
    assert found.flips is not None
    assert found.flips.share.value == 0
    assert found.divergence.mean.value < 1e-4
    assert found.candidate.exact_match == found.against.exact_match


def test_a_person_is_told_the_figures_in_lines(held_out: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "Invoice 4711 of 12 May 2020, total EUR 120.00"}) + "\n")
    result = CliRunner().invoke(command, [str(MODEL), "--against", str(MODEL), "--data", str(text), "--no-noise"])
    assert result.exit_code == 0, result.output
    assert "mean KL" in result.stdout
    assert "flipped answers" not in result.stdout  # where none is expected


@pytest.mark.parametrize(
    ("candidate", "against", "data", "code", "field"),
    [
        ("nowhere", MODEL, "held-out", "model_not_found", "candidate"),
        (MODEL, "nowhere", "held-out", "model_not_found", "against"),
        (MODEL, MODEL, "nowhere", "evaluation_data_unusable", "data"),
    ],
)
def test_programs_are_told_what_is_at_fault(
    held_out: Path, tmp_path: Path, candidate: str, against: str, data: str, code: str, field: str
) -> None:
    file = held_out if data == "held-out" else tmp_path / data
    arguments = [str(candidate), "--against", str(against), "--data", str(file), "--progress", "json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    (said,) = map(json.loads, result.stdout.splitlines())
    assert (said["event"], said["code"], said["field"]) == ("failed", code, field)


def test_models_of_other_tokens_are_not_compared(tiny: TinyModel, tmp_path: Path, held_out: Path) -> None:
    data = EvaluationData.read(held_out, MODEL, context=1024, sequences=1)
    with pytest.raises(ModelsDiffer, match="768"):
        evaluate(tiny.folder, MODEL, data)
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"<|system|>"', '"<|sistem|>"'))
    with pytest.raises(ModelsDiffer, match="tokenizers"):
        evaluate(other, MODEL, data)


def test_a_model_that_the_engine_does_not_run_is_told_by_its_own_code(tmp_path: Path, held_out: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    data = EvaluationData.read(held_out, MODEL, context=1024, sequences=1)
    with pytest.raises(ModelRefused, match=r"model\.norm\.weight") as caught:
        evaluate(folder, MODEL, data)
    assert (caught.value.code, caught.value.field) == ("model_corrupt", "candidate")


def test_data_that_hold_nothing_are_refused() -> None:
    with pytest.raises(EvaluationDataUnusable):
        evaluate(MODEL, MODEL, EvaluationData([]))


def test_steps_tell_each_thousandth_once() -> None:
    told: list[int] = []
    steps = Steps(5000, lambda done, _of, _what: told.append(done))
    for _ in range(5000):
        steps()
    assert len(told) == 1000
    assert told[-1] == 5000
