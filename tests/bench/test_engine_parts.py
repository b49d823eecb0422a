"""The parts that look into our engine, on a model small enough for a test."""

from pathlib import Path

import pytest

from bench.engine_parts import overhead, policies, prefix, waste
from bench.engine_parts.loads import RaggedTrace, SharedPrefix
from bench.engine_parts.shapes import Shape, write

SMALL = Shape(hidden=64, intermediate=64, layers=1, heads=1, kv_heads=1, vocabulary=512, positions=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "small"
    write(SMALL, folder)
    return folder


def test_policies_run_the_same_trace_and_fill_their_batches_differently(folder: Path) -> None:
    compared = policies.compare(folder, 1, RaggedTrace(48, prompt_median=8, output_median=8), rounds=1)
    figures = compared["policies"]
    assert len({each["output_tokens"] for each in figures.values()}) == 1
    steps = [figures[policy]["steps"] for policy in ("continuous", "static", "request")]
    assert steps == sorted(steps)
    assert steps[2] == figures["request"]["output_tokens"]
    assert {"ratio_static", "ratio_request", "latency_over_static", "latency_over_request"} <= set(compared)


def test_prefix_counts_prompt_tokens_and_knows_the_fewest(folder: Path) -> None:
    measured = prefix.measure(folder, 1, SharedPrefix(jobs=6, shared=100, tails=(4, 9), output=3))
    assert measured["optimal_tokens"] == measured["prompt_tokens"] - 5 * 100
    assert 1.0 <= measured["prefix_computed_over_optimal"] < 2.0
    assert measured["hit_rate"] <= measured["optimal_hit_rate"]


def test_waste_is_sampled_at_the_live_length_that_it_is_about(folder: Path) -> None:
    measured = waste.measure(folder, 1, requests=48)
    assert measured["mean_live_tokens"] == pytest.approx(waste.MEAN_LIVE, rel=0.05)
    assert 0.02 < measured["kv_waste"] < 0.06  # half a page of 16 for 200 tokens: 0.036


def test_overhead_is_what_the_parts_of_a_step_leave(folder: Path) -> None:
    measured = overhead.measure(folder, folder, 1)
    parts = measured["parts_ms"]
    assert set(parts) == set(overhead.PARTS)
    assert all(0 < each < measured["step_ms"] for each in parts.values())
    assert 0 < measured["overhead_share"] < measured["overhead_share_with_calls"]
