"""The bench of a GPU, gone through on a CPU: every part runs, and tells what the record is made of."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from penstock_kernels.cpu import support

from bench.gpu import PARTS, expected, parts_of, record_of, run
from bench.gpu_parts import attention, each_kernel, own, peers
from bench.gpu_parts.busy import covered, gpu_seconds
from bench.gpu_parts.job import Job, read_rows
from bench.gpu_parts.report import GOALS, lines, missing, verdicts, with_rooflines
from bench.gpu_parts.shapes import PRECISIONS, SHAPES, Cost
from bench.kernel_parts import timing
from bench.kernel_parts.contest import MeasureCase

ROOT = Path(__file__).parents[2]
DRY = SHAPES["dry"]
SMALL = replace(DRY, plan=replace(DRY.plan, batches=(2,)))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(SMALL, "cpu", tmp_path / "rows.jsonl")


def test_a_run_writes_a_record_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the part that all others are held against, in its process, as it is called."""
    assert run(["ceilings"], "dry", "cpu", tmp_path, 60.0) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert set(record) == {"on", "shape", "goals", "not_measured", "parts", "rows"}
    assert {"torch", "triton", "commit", "gpu"} <= set(record["on"])
    assert [(each["part"], each["how"]) for each in record["parts"]] == [("ceilings", "ok")]
    (ceilings,) = record["rows"]
    assert min(ceilings["copy"], ceilings["read"], ceilings["matmul"]["bfloat16"]) > 0
    assert "ceilings: copy" in capsys.readouterr().out
    assert (tmp_path / "gpu-bench.log").read_text().startswith("=== ceilings: ok")


def test_an_engine_tells_all_that_the_record_holds(job: Job) -> None:
    own.run(replace(job, shape=DRY))
    told = read_rows(job.rows)
    ceilings = {"what": "ceilings", "who": "torch", "copy": 1e12, "read": 1e12, "matmul": {"bfloat16": 1e15}}
    rows = with_rooflines([ceilings, *told], datasheet=2e15)
    decoding = {(row["who"], row["batch"]): row for row in rows if row["what"] == "decode"}
    own_rows = [("penstock bf16", batch) for batch in DRY.plan.batches]
    assert set(decoding) == {*own_rows, ("penstock bf16, no graphs", 1), ("penstock bf16, no overlap", 1)}
    for row in decoding.values():
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["seconds"])
        assert 0 < row["of_roofline"] < 1
        assert row["gpu_seconds"] is None
        assert row["not_gpu"] is None
    (prefill,) = (row for row in rows if row["what"] == "prefill")
    assert prefill["mfu"] == pytest.approx(prefill["flop_per_s"] / 2e15)
    (engine,) = (row for row in rows if row["what"] == "engine")
    assert "layers" in engine["kernels"]
    assert missing(told, dict(expected(["bf16"], DRY.plan))) == []


@pytest.mark.parametrize("precision", ["int8", "fp8", "bf16-kv-fp8"])
def test_each_precision_decodes(job: Job, precision: str) -> None:
    own.run(replace(job, precision=PRECISIONS[precision]))
    rows = [row for row in read_rows(job.rows) if row["what"] == "decode"]
    assert [("tokens_per_s" in row, "missing" in row) for row in rows] == [(True, False)]


@pytest.mark.parametrize("precision", ["int8", "bf16-kv-fp8"])
def test_a_precision_that_this_device_has_not_is_told_with_its_reason(
    job: Job, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "lacking", lambda: "this processor has no wheels")
    own.run(replace(job, precision=PRECISIONS[precision]))
    (row,) = (row for row in read_rows(job.rows) if row["what"] == "decode")
    assert "this processor has no wheels" in row["missing"]


def test_the_peer_decodes_on_the_same_shape(job: Job) -> None:
    peers.run(job)
    (row,) = read_rows(job.rows)
    assert (row["who"], row["batch"]) == ("transformers generate", 2)
    assert row["seconds_in_all"] > row["seconds_to_first"] > 0


def test_attention_has_three_contestants_at_each_size(job: Job) -> None:
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        attention.run(job)
    rows = read_rows(job.rows)
    sizes = {(row["kernel"], row["size"]) for row in rows}
    assert sizes == {("decode_attention", "2 runs of 17"), ("extend_attention", "1 run of 20")}
    assert {row["who"] for row in rows} == {"penstock", "torch SDPA", "torch flex_attention"}
    assert len(rows) == 6


def test_a_kernel_that_fails_stops_no_other(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = timing.measure

    def failing(case: MeasureCase, ceilings: timing.Ceilings, device: str) -> dict[str, object]:
        if case.kernel != "store_kv":
            raise RuntimeError("this one fails")
        return measure(case, ceilings, device)

    monkeypatch.setattr(timing, "measure", failing)
    each_kernel.run(job)
    rows = {row["kernel"]: row for row in read_rows(job.rows)}
    assert rows["take_rows"]["error"] == "RuntimeError: this one fails"
    assert rows["store_kv"]["us"] > 0
    assert rows["store_kv"]["of_floor"] > 0
    assert len(rows) > 8


def test_every_part_can_be_started() -> None:
    for part in parts_of(list(PARTS), "quick", "cuda", Path("out")):
        assert part.command[0] == sys.executable
        assert (ROOT / "bench" / "gpu_parts" / f"{part.command[3].rpartition('.')[2]}.py").is_file()
    assert {name for name, (module, _, _) in PARTS.items() if module == "own"} == set(PRECISIONS)


def test_the_least_that_a_step_costs() -> None:
    """Of Llama-3.1-8B by hand: 15.0 GB of weights that are read, 128 KB of K and V for each token of context."""
    shape = SHAPES["llama-3.1-8b"]
    assert shape.layer_weights == 32 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336)
    one = shape.decode(1, 1024, PRECISIONS["bf16"])
    assert one.moved == 2 * (shape.layer_weights + shape.head_weights) + 1024 * 131_072
    assert one.moved == pytest.approx(15.14e9, rel=1e-3)
    assert shape.decode(1, 1024, PRECISIONS["fp8-kv-fp8"]).moved == pytest.approx(
        shape.layer_weights + 2 * shape.head_weights + 1024 * 32 * 2 * 8 * 130
    )
    assert shape.decode(64, 1024, PRECISIONS["int8"]).flops["int8"] == 2 * 64 * shape.layer_weights
    assert set(shape.prefill(8, 2048, PRECISIONS["bf16"]).flops) == {"bfloat16"}


def test_the_roofline_is_the_larger_of_bytes_and_operations() -> None:
    cost = Cost(100.0, {"bfloat16": 30.0, "fp8": 40.0})
    assert cost.floor(10.0, {"bfloat16": 10.0, "fp8": 20.0}) == 10.0
    assert cost.floor(50.0, {"bfloat16": 10.0, "fp8": 20.0}) == 5.0
    ceilings = {"what": "ceilings", "copy": 8.0, "read": 10.0, "matmul": {"bfloat16": 10.0}}
    row = {"what": "decode", "who": "x", "seconds": 20.0, "moved": 100.0, "flops": {"bfloat16": 30.0}}
    _, shared, unknown = with_rooflines([ceilings, row, {**row, "flops": {"fp8": 1.0}}], None)
    assert shared["of_roofline"] == 0.5
    assert unknown["of_roofline"] is None


def test_what_was_not_measured_is_named_and_never_guessed(tmp_path: Path) -> None:
    owed = dict(expected(["bf16", "generate"], SHAPES["quick"].plan))
    told = [{"what": "decode", "who": "penstock bf16", "batch": 1, "tokens_per_s": 200.0}]
    assert missing(told, owed) == [
        "bf16: penstock bf16 at batch 8",
        "generate: transformers generate at batch 1",
        "generate: transformers generate at batch 8",
    ]
    goals = {
        (each["who"], each["batch"]): each["tokens_per_s"] for each in verdicts(told, "NVIDIA H200", "llama-3.1-8b")
    }
    assert goals == {key: 200.0 if key == ("penstock bf16", 1) else None for key in GOALS}
    assert verdicts(told, "another GPU", "llama-3.1-8b") == []
    record = record_of([], tmp_path, "quick", ["bf16"])
    assert record["rows"] == []
    assert "not measured: bf16: penstock bf16 at batch 1" in list(lines(record))[-1]


def test_rows_of_a_part_that_was_ended_are_kept_to_the_last_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"what": "decode"}\n{"what": "dec')
    assert read_rows(file) == [{"what": "decode"}]


def test_time_of_the_gpu_counts_overlaps_once() -> None:
    assert covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert covered([]) == 0
    assert gpu_seconds(lambda: None) is None


def test_small_inputs_are_many_sets_and_large_ones_few() -> None:
    cache = 50 << 20
    assert timing.sets_needed(4 << 20, cache) == 50
    assert timing.sets_needed(8, cache) == timing.MOST_SETS
    assert timing.sets_needed(1 << 30, cache) == 1
    assert timing.sets_needed(8, 0) == 1
