"""Formats beside bfloat16: a real race on a model small enough for a test, and what its ratios are of."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.engine_parts import schemes
from bench.engine_parts.decode import Plan, Row
from bench.engine_parts.shapes import write
from tests.bench.test_engine_race import SMALL

PLAN = Plan(batches=(1, 3), prompt=8, output=6, rounds=1)


def row(contestant: str, batch: int, rate: float) -> Row:
    return Row(contestant, batch, rounds=[{"tokens_per_s": 1.0, "decode_tokens_per_s": rate, "step_ms": None}])


def test_ratios_are_of_decoding_at_the_same_batch() -> None:
    rows = [row("penstock bf16", 1, 10.0), row("penstock bf16", 32, 40.0), row("penstock int4", 1, 30.0)]
    rows += [row("penstock int4", 32, 50.0), Row("penstock fp8", 1, missing="why")]
    expected = {"ratio_int4_b1": 3.0, "ratio_int4_b32": 1.25, "ratio_fp8_b1": None}
    assert schemes.ratios_of(rows) == expected


def test_a_checkpoint_is_made_and_runs_in_its_own_format(tmp_path: Path) -> None:
    write(replace(SMALL, positions=64), tmp_path / "small")
    record = schemes.measure(tmp_path / "small", ["int4-asym"], PLAN, 1, tmp_path)
    about = record["race"]["processes"]["penstock int4-asym"]["about"]
    if not about["layers"].startswith("compiled"):
        pytest.skip("compiled kernels do not run here")
    assert about["Int4 with zeros"] == str(4 * SMALL.layers)
    assert set(record["race"]["ratios"]) == {"ratio_int4-asym_b1", "ratio_int4-asym_b3"}
    assert {each["key"]: each["met"] for each in record["targets"]} == {"ratio_int4_b1": None, "ratio_int8_b32": None}
