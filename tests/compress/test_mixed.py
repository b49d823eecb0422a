"""Mixed precision: bits go where a measurement says that they are missed, and never more of them than are asked for."""

import itertools
import json
from pathlib import Path
from random import Random
from typing import Any

import penstock_compress.mixed as mixed
import pytest
import torch
from penstock_compress import InvalidRecipe, Recipe, compress
from penstock_compress.errors import BudgetTooSmall
from penstock_compress.gptq import nearest
from penstock_compress.mixed import CANDIDATES, Sizes, choose, sizes_of
from penstock_compress.packing import from_tensors
from penstock_compress.recipe import bytes_of
from penstock_compress.sensitivity import sensitivities
from penstock_compress.source import Source
from penstock_engine import Engine, EngineConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.compress.test_compressing import all_tensors, divergence
from tests.engine.tiny import TinyModel, compiled_only, make_tiny, random_prompt

pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")


def recipe(target: str, method: str = "rtn") -> Recipe:
    return Recipe("mixed", method, group=32, target_bytes=target)  # type: ignore[arg-type]


def report_of(folder: Path) -> Any:
    return json.loads((folder / "compression.json").read_text())


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Four random sequences."""
    return torch.randint(8, 199, (4, 32), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def made(tiny: TinyModel, tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at 35% of its bytes, where all of it takes 33 in 4 bits and 31 in 3."""
    folder = tmp_path_factory.mktemp("mixed") / "made"
    compress(tiny.folder, folder, recipe("35%"), tokens)
    return folder


def test_a_size_may_be_said_in_many_ways() -> None:
    said = {"900kB": 900_000, "1.2GB": 1_200_000_000, "40%": 4000, "123456": 123_456, " 2 MB ": 2_000_000, "7b": 7}
    assert {text: bytes_of(text, 10_000) for text in said} == said
    for wrong in ("", "0", "-1", "40 %%", "1.2 GiB", "many", "0%"):
        with pytest.raises(InvalidRecipe, match="target_bytes"):
            bytes_of(wrong, 10_000)


@pytest.mark.parametrize(
    "wrong", [{"scheme": "mixed"}, {"scheme": "int4", "target_bytes": "40%"}, {"scheme": "mixed", "target_bytes": "x"}]
)
def test_a_size_goes_with_the_scheme_that_keeps_to_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        Recipe(**wrong)
    assert refused.value.field == "target_bytes"


@pytest.mark.parametrize("seed", range(6))
def test_what_is_chosen_is_the_best_of_all_choices(seed: int) -> None:
    draw = Random(seed)
    parts = {f"{index}": {scheme: draw.randrange(10, 90) for scheme in "abcd"} for index in range(5)}
    losses = {part: {scheme: draw.random() for scheme in "abc"} for part in parts}  # `d` is as it was
    sizes = Sizes(100, parts)

    def total(chosen: dict[str, str]) -> tuple[int, float]:
        size = sum(parts[part][scheme] for part, scheme in chosen.items())
        return 100 + size, sum(losses[part].get(scheme, 0.0) for part, scheme in chosen.items())

    every = [total(dict(zip(parts, schemes, strict=True))) for schemes in itertools.product("abcd", repeat=5)]
    for budget in (sizes.least, sizes.least + 37, sizes.least + 140, 1000):
        size, loss = total(choose(sizes, losses, budget))
        assert size <= budget
        assert loss == pytest.approx(min(other for each, other in every if each <= budget))


def test_of_very_many_choices_the_best_for_so_many_sizes_are_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Random(9)
    parts = {f"{index}": {scheme: draw.randrange(1000, 9000) for scheme in "abcd"} for index in range(14)}
    losses = {part: {scheme: draw.random() for scheme in "abcd"} for part in parts}
    sizes, found = Sizes(0, parts), []
    for kept in (4096, 64):
        monkeypatch.setattr(mixed, "KEPT", kept)
        chosen = choose(sizes, losses, sizes.least + 20_000)
        assert sum(parts[part][scheme] for part, scheme in chosen.items()) <= sizes.least + 20_000
        found.append(sum(losses[part][scheme] for part, scheme in chosen.items()))
    assert found[0] <= found[1] < 1.1 * found[0]


def test_losses_are_the_divergence_of_the_model_with_that_part_alone_rounded(tiny: TinyModel, tokens: Tensor) -> None:
    grids = {"int4": Recipe("int4", group=32).grid, "int3": Recipe("int3", group=32).grid}
    told: list[tuple[int, int, str]] = []
    losses = sensitivities(Source(tiny.folder), tokens, grids, lambda *step: told.append(step))
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        before = model(tokens).logits.log_softmax(-1)
        for name in ("gate_proj", "up_proj"):
            weight = model.model.layers[1].mlp.get_submodule(name).weight
            weight.copy_(nearest(weight, grids["int3"], torch.float32).dequantize())
        after = model(tokens).logits.log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert losses["1.gates"]["int3"] == pytest.approx(expected, rel=1e-3)
    assert all(0 < of["int4"] < of["int3"] for of in losses.values())
    assert len(losses) == 3 * 3
    assert [step[:2] for step in told] == [(1, 3), (2, 3), (3, 3)]


def test_each_part_gets_what_the_plan_says_and_transformers_runs_it(tiny: TinyModel, made: Path) -> None:
    report = report_of(made)
    schemes = {layer["name"]: layer["scheme"] for layer in report["layers"]}
    assert len(set(schemes.values()) - {None}) >= 2
    told = json.loads((made / "config.json").read_text())["quantization_config"]
    for group in told["config_groups"].values():
        bits = {"int8-weights": 8, "int4": 4, "int3": 3}
        assert {bits[schemes[target]] for target in group["targets"]} == {group["weights"]["num_bits"]}
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    assert divergence(tiny.reference, model) < 1.0
    tensors = all_tensors(made)
    for name, scheme in schemes.items():
        weight = model.get_submodule(name).weight
        ours = from_tensors(name, tensors, Recipe(scheme, group=32).grid, None).dequantize() if scheme else None
        whole = tiny.reference.get_submodule(name).weight
        assert torch.allclose(weight, whole if ours is None else ours, atol=1e-6)


def test_it_is_no_larger_than_asked_for_and_better_than_one_scheme_of_its_size(
    tiny: TinyModel, tokens: Tensor, tmp_path: Path
) -> None:
    sizes = sizes_of(Source(tiny.folder), {scheme: Recipe(scheme, group=32).grid for scheme in CANDIDATES})
    plain = compress(tiny.folder, tmp_path / "int4", Recipe("int4", group=32))
    estimated = sizes.fixed + sum(of["int4"] for of in sizes.parts.values())
    assert plain.bytes <= estimated < 1.02 * plain.bytes
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype=torch.float32).eval()
    for budget in (sizes.least, estimated):
        outcome = compress(tiny.folder, tmp_path / str(budget), recipe(str(budget)), tokens)
        assert budget * 0.97 < outcome.bytes <= budget
    same = AutoModelForCausalLM.from_pretrained(tmp_path / str(estimated), dtype=torch.float32).eval()
    assert divergence(tiny.reference, same) < divergence(tiny.reference, before)


def test_a_size_that_nothing_has_is_refused_with_the_least_one(tiny: TinyModel, tokens: Tensor, target: Path) -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        compress(tiny.folder, target, recipe("10%"), tokens)
    assert f"{refused.value.least:,}" in str(refused.value)
    assert refused.value.field == "target_bytes"
    with pytest.raises(BudgetTooSmall):
        compress(tiny.folder, target.with_name("one less"), recipe(str(refused.value.least - 1)), tokens)


def test_what_has_room_stays_as_it_was(tiny: TinyModel, tokens: Tensor, target: Path) -> None:
    compress(tiny.folder, target, recipe("150%"), tokens)
    report = report_of(target)
    assert {part["scheme"] for part in report["mixed"]["parts"].values()} == {"whole"}
    assert divergence(tiny.reference, AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()) < 1e-6


def test_a_run_that_was_killed_measures_no_more_than_it_must(
    tiny: TinyModel, tokens: Tensor, made: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    steps: list[str] = []

    def killed_after(parts: int) -> Any:
        def report(done: int, of: int, what: str) -> None:
            assert of == 3 + 3 + 1
            steps.append(what)
            if done == parts:
                raise Killed

        return report

    for parts in (2, 5):
        with pytest.raises(Killed):
            compress(tiny.folder, tmp_path / "again", recipe("35%"), tokens, killed_after(parts))
    steps.clear()
    compress(tiny.folder, tmp_path / "again", recipe("35%"), tokens, killed_after(99))
    assert steps
    assert not any(step.startswith("sensitivity") for step in steps)
    whole, again = all_tensors(made), all_tensors(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert {path.name for path in made.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}


@pytest.mark.parametrize(("kind", "method"), [("gemma2", "awq"), ("phi3", "gptq")])
def test_other_models_and_methods_too(tmp_path: Path, tokens: Tensor, kind: str, method: str) -> None:
    source = make_tiny(tmp_path / "source", kind, intermediate_size=128)
    outcome = compress(source.folder, tmp_path / "mixed", recipe("60%", method), tokens)
    assert outcome.bytes <= 0.6 * outcome.source_bytes
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mixed", dtype=torch.float32).eval()
    assert divergence(source.reference, model) < 1.0


@compiled_only
def test_our_engine_runs_each_part_as_it_is_stored(made: Path) -> None:
    engine = Engine.from_folder(made, EngineConfig(dtype="float32", kv_pages=8))
    kinds = {"int8-weights": "Int8", "int4": "Int4", "int3": "Int3"}
    schemes = {part["scheme"] for part in report_of(made)["mixed"]["parts"].values()} - {"whole"}
    assert {kinds[scheme] for scheme in schemes} == set(engine.kernels) & set(kinds.values())
    prompt = random_prompt(24, 7)
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)[range(23), prompt[1:]]
    difference = (torch.tensor(engine.score(prompt)) - theirs).abs()
    assert difference.mean() < 0.2  # its inputs are rounded to 8 bits too, and these random models' logits are steep
