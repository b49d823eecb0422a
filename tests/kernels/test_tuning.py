"""Which tiles a tuner may choose, what it chooses, and which tables launchers believe."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from penstock_kernels.gpu import decode_attention as decode_module
from penstock_kernels.gpu import extend_attention as extend_module
from penstock_kernels.gpu import quant_matmul_8bit, quant_matmul_w4a16, tuning
from penstock_kernels.gpu.attention_tiles import Tiles, decode_tiles, extend_tiles
from penstock_kernels.gpu.attention_variants import VARIANTS, Variant
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.split_k import Tile, split_arrivals
from penstock_kernels.gpu.tile_candidates import (
    CANDIDATES,
    DECODE,
    EXTEND,
    FUSED,
    INT8,
    W4A16,
    Choice,
    Limit,
    attention_class,
    rows_class,
)
from penstock_kernels.gpu.tuning import (
    Measured,
    Table,
    TableRefused,
    cache_file,
    first_usable,
    read,
    shipped_file,
    write,
)
from penstock_kernels.quant_int4 import pack_int4

from bench.kernel_parts import sweep as sweep_module
from bench.kernel_parts.sweep import GAIN, Trial, Workload, attention_run, measure_on, sweep, trials
from bench.kernels import tune
from tests.kernels.attention_batches import close, make_batch
from tests.kernels.quant_cases import random, random_int4

GPU = "NVIDIA H200"
LAYER = Variant()
PLAIN = attention_class(LAYER)
TUNED = CANDIDATES[DECODE, PLAIN][0]
SMALL = Workload("cpu", torch.float16, weight=(48, 512), decoding=(1, 20), prefill=20, crossing=(3, 100))
FOUND = {(DECODE, PLAIN): Measured(TUNED, 1e-5, 2e-5), (W4A16, FUSED): Measured(Limit(128), 3e-4, 4e-4)}


def in_code(kernel: str, shapes: str) -> list[Choice]:
    """What launchers take for these shapes without a table."""
    if (kernel, shapes) == (W4A16, FUSED):
        return [Limit(quant_matmul_w4a16.FUSED_ROWS)]
    tiles_of = {EXTEND: extend_tiles, DECODE: decode_tiles}.get(kernel)
    if tiles_of is not None:
        layers = [each for each in VARIANTS if attention_class(each) == shapes]
        return list({tiles_of(each, 90) for each in layers})
    tiles = quant_matmul_w4a16._TILES if kernel == W4A16 else quant_matmul_8bit._TILES[kernel]
    return [tile for tile in tiles if rows_class(tile) == shapes]


@pytest.mark.parametrize(("kernel", "shapes"), CANDIDATES)
def test_every_class_is_one_that_launchers_ask_for_and_its_candidates_are_others(kernel: str, shapes: str) -> None:
    candidates = CANDIDATES[kernel, shapes]
    own = in_code(kernel, shapes)
    assert own
    assert len(set(candidates)) == len(candidates)
    assert not set(candidates) & set(own)
    assert {type(each) for each in candidates} == {type(each) for each in own}


def test_every_candidate_is_compiled_among_the_cases() -> None:
    """So that `test_compile` and `bench.kernels --compile-only` see what a table may choose."""
    modules = (extend_module, decode_module, quant_matmul_w4a16, quant_matmul_8bit)
    labels = [case.label for module in modules for case in module.compile_cases()]
    for candidates in CANDIDATES.values():
        for candidate in (each for each in candidates if not isinstance(each, Limit)):
            assert any(candidate.label in label for label in labels), candidate


def fake(times: dict[Choice, float]) -> Callable[[Trial], dict[Choice, float]]:
    """A timer that knows beforehand; what it does not name fails here."""
    return lambda trial: {choice: times[choice] for choice in (trial.in_code, *trial.candidates) if choice in times}


def a_trial(kernel: str, shapes: str) -> Trial:
    return next(trial for trial in trials(Workload("cpu")) if (trial.kernel, trial.shapes) == (kernel, shapes))


def test_the_sweep_takes_the_fastest_that_gains_something() -> None:
    trial = a_trial(DECODE, PLAIN)
    first, second, *_ = trial.candidates
    for times, chosen in (
        ({trial.in_code: 1.0, first: 0.9, second: 0.8}, second),
        ({trial.in_code: 1.0, first: 0.9}, first),  # the second one cannot be launched there
        ({trial.in_code: 1.0, first: GAIN + 0.001}, trial.in_code),
        ({trial.in_code: 1.0, first: 1.2, second: 1.1}, trial.in_code),
    ):
        ((key, best),) = sweep([trial], fake(times))
        assert key == (DECODE, PLAIN)
        assert best == Measured(chosen, times[chosen], 1.0)


def test_every_class_with_candidates_is_tried() -> None:
    assert {(trial.kernel, trial.shapes) for trial in trials(Workload("cpu"))} == set(CANDIDATES)


def small_trial(kernel: str) -> Trial:
    """With two candidates, on few numbers: a layer of four heads, a product of three thousand weights."""
    if kernel != DECODE:
        trial = next(each for each in trials(SMALL) if each.kernel == kernel)
        return replace(trial, candidates=trial.candidates[:2])
    layer = Variant(heads=4, kv_heads=2, head_dim=16, dtype=torch.float16)
    make = partial(attention_run, SMALL, layer, decode_attention, 2, 40, True)
    return Trial(DECODE, "small", Tiles(16, 16, 4, 2), 1, make, (Tiles(16, 32, 4, 2), Tiles(32, 16, 4, 2)))


@pytest.mark.parametrize("kernel", [DECODE, W4A16, INT8])
def test_candidates_are_run_on_what_they_are_for(kernel: str) -> None:
    """In Triton's interpreter: candidates answer as the tile in code does, so none is left out."""
    trial = small_trial(kernel)
    assert len(trial.candidates) == 2
    assert set(measure_on(SMALL, trial)) == {trial.in_code, *trial.candidates}


def test_the_command_measures_and_writes_every_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `--tune` does where a GPU is, in Triton's interpreter."""
    trial = small_trial(INT8)
    monkeypatch.setattr(sweep_module, "trials", lambda _: [trial, small_trial(W4A16)])
    files = [cache_file(GPU, tmp_path / "cache"), shipped_file(GPU, tmp_path)]
    tune(SMALL, GPU, "int8", files)
    for file in files:
        (entry,) = json.loads(file.read_text())["choices"][INT8].items()
        assert entry[0] == trial.shapes
        assert 0 < entry[1]["us"] <= entry[1]["us_in_code"]
        assert entry[1]["tile"] in [asdict(each) for each in (trial.in_code, *trial.candidates)]


def test_a_candidate_that_answers_otherwise_is_no_choice() -> None:
    """Nor one that writes nothing, in memory where another's answer lay."""
    right, memory = torch.randn(4, 4, dtype=torch.float16), torch.empty(4, 4, dtype=torch.float16)
    idle, wrong, broken = CANDIDATES[DECODE, PLAIN][:3]

    def run(choice: Choice) -> torch.Tensor:
        if choice == broken:
            raise RuntimeError("out of shared memory")
        return memory if choice == idle else memory.copy_(right * (1.1 if choice == wrong else 1.0))

    trial = Trial(DECODE, PLAIN, decode_tiles(LAYER, 90), 1, lambda: run, CANDIDATES[DECODE, PLAIN])
    assert set(measure_on(SMALL, trial)) == {trial.in_code, *trial.candidates} - {wrong, broken, idle}


def test_a_table_says_what_was_written(tmp_path: Path) -> None:
    file = cache_file(GPU, tmp_path)
    write(file, GPU, FOUND)
    table = read(file, GPU)
    assert dict(table.choices) == {key: best.tile for key, best in FOUND.items()}
    assert table.source.startswith(file.name)
    assert json.loads(file.read_text())["choices"][DECODE][PLAIN] == {
        "tile": asdict(TUNED),
        "us": 10.0,
        "us_in_code": 20.0,
    }
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def broken(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        table = json.loads(text)
        change(table)
        return json.dumps(table)

    return apply


REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "no JSON"),
    "a list": (lambda _: "[]", "format"),
    "of tomorrow": (broken(lambda table: table.update(format=2)), "format 1"),
    "foreign": (broken(lambda table: table.update(gpu="another")), "'another'"),
    "without choices": (broken(lambda table: table.pop("choices")), "choices"),
    "no mapping": (broken(lambda table: table.update(choices={DECODE: 3})), "choices"),
    "unknown kernel": (broken(lambda table: table["choices"].update(x={"y": {"tile": {}}})), "x, y"),
    "a tile that spills": (
        broken(lambda table: table["choices"][DECODE][PLAIN]["tile"].update(block_n=4096)),
        "no candidate",
    ),
    "a bare number": (broken(lambda table: table["choices"][DECODE].update({PLAIN: 7})), "no candidate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_or_foreign_table_is_refused_by_name_and_the_next_is_used(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, shipped = cache_file(GPU, tmp_path / "cache"), shipped_file(GPU, tmp_path)
    for file in (mine, shipped):
        write(file, GPU, FOUND)
    spoil, reason = REFUSED[name]
    mine.write_text(spoil(mine.read_text()))
    with pytest.raises(TableRefused, match=reason):
        read(mine, GPU)
    with caplog.at_level(logging.WARNING):
        table = first_usable(GPU, [mine, shipped])
    assert table.source.startswith(shipped.name)
    (said,) = caplog.messages
    assert "tuning.refused" in said
    assert str(mine) in said


def test_without_a_table_the_code_chooses(tmp_path: Path) -> None:
    assert first_usable(GPU, [tmp_path / "none.json"]) == Table(tuning.IN_CODE)
    assert tuning.table_of(torch.device("cpu")) == Table(tuning.IN_CODE)


def test_another_triton_or_another_kernel_looks_for_another_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {cache_file(GPU, tmp_path).name, cache_file("NVIDIA A100", tmp_path).name}
    monkeypatch.setattr(triton, "__version__", "9.9")
    names.add(cache_file(GPU, tmp_path).name)
    monkeypatch.setattr(tuning, "kernels_hash", lambda: "changed")
    names.add(cache_file(GPU, tmp_path).name)
    assert len(names) == 4
    assert shipped_file(GPU, tmp_path).name == "nvidia-h200.json"


def test_shipped_tables_can_be_used() -> None:
    for file in tuning.SHIPPED.glob("*.json"):
        assert read(file, json.loads(file.read_text())["gpu"]).choices


class Launches:
    """Stands before a kernel, and keeps the constants of each launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.seen: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **constants: Any) -> Any:
            self.seen.append(constants)
            return self.kernel[grid](*arguments, **constants)

        return launch


def test_launchers_take_what_the_table_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Variant(heads=4, kv_heads=2, head_dim=16, dtype=torch.float32)
    tiles, base = Tiles(32, 16, 2, 4), Tile(16, 32, 128, 4, 2)
    choices: dict[tuple[str, str], Choice] = {
        (DECODE, attention_class(layer)): tiles,
        (W4A16, "16 rows"): base,
        (W4A16, FUSED): Limit(2),
    }
    monkeypatch.setattr(tuning, "table_of", lambda _: Table("a test", choices))
    attention, product = Launches(decode_module.decode_attention_kernel), Launches(quant_matmul_w4a16._w4a16_kernel)
    monkeypatch.setattr(decode_module, "decode_attention_kernel", attention)
    monkeypatch.setattr(quant_matmul_w4a16, "_w4a16_kernel", product)
    batch = make_batch([(1, 20), (1, 3)])
    assert close(batch.answer(decode_attention), batch.exact())
    packed, arrivals = pack_int4(random_int4(40, 256, 128)), split_arrivals("cpu")
    multiply = partial(quant_matmul_w4a16.w4a16_matmul, weight=packed, arrivals=arrivals)
    multiply(random(2, 256, dtype=torch.float16))
    assert (attention.seen[0]["BLOCK_M"], attention.seen[0]["BLOCK_N"], attention.seen[0]["num_stages"]) == (32, 16, 4)
    assert [(each["COLUMNS"], each["STAGES"]) for each in product.seen] == [(32, 2)]
    multiply(random(3, 256, dtype=torch.float16))  # beyond the table's limit: dequantized beforehand
    assert len(product.seen) == 1
