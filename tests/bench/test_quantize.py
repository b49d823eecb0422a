"""What a run of some blocks says of all of them."""

import pytest

from bench.quantize import SHAPE, figures

PARTS = [{"done": 1 + block, "wall_seconds": 3.0 + 10 * block, "cpu_seconds": 2.0 + 8 * block} for block in range(3)]
END = {"wall_seconds": 24.0, "cpu_seconds": 18.5, "peak_gib": 1.25, "bytes": 30, "source_bytes": 100}


def test_a_run_of_two_blocks_counts_what_is_done_once_but_once() -> None:
    values = figures(PARTS, END, 2)
    assert values["wall_seconds_per_block"] == 10
    assert values["wall_seconds"] == pytest.approx(24 + (SHAPE.layers - 2) * 10)
    assert values["cpu_seconds"] == pytest.approx(18.5 + (SHAPE.layers - 2) * 8)
    assert values["extrapolated"] is True


def test_a_whole_run_is_told_as_it_was() -> None:
    values = figures(PARTS, END, SHAPE.layers)
    assert (values["wall_seconds"], values["peak_gib"], values["extrapolated"]) == (24.0, 1.25, False)
    assert values["bytes_over_source"] == 0.3
