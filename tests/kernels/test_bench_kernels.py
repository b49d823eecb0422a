"""What `bench.kernels` measures: ours and the peer do the same work. Small, and in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernel_parts.contest import MeasureCase, Sizes
from bench.kernels import machine, measure_cases

ROOT = Path(__file__).parent.parent.parent
SMALL = Sizes(
    device="cpu",
    dtype=torch.float32,
    hidden=64,
    inner=48,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocabulary=90,
    tokens=(3,),
    sampled=(2,),
    adapted=((9, 2),),
    decoding=((2, 20),),
    prefill=(20,),
    products=(3,),
    weight=(64, 128),
)
CASES = measure_cases(SMALL)
TOLERANCES = {"w8a8_matmul": 0.05, "fp8_matmul": 0.2}  # of quantized activations beside plain ones


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kernel}, {case.size}")
def test_the_peer_computes_the_same(case: MeasureCase) -> None:
    torch.manual_seed(0)
    contest = case.make()
    ours, peer = contest.ours(), contest.peer()
    assert ours.shape == peer.shape
    tolerance = TOLERANCES.get(case.kernel, 1e-4)
    torch.testing.assert_close(ours, peer, rtol=tolerance, atol=tolerance)


def test_bytes_and_products_are_counted_at_their_least() -> None:
    counted = {(case.kernel, case.size): (case.moved, case.flops) for case in CASES}
    assert counted["rms_norm_residual", "3 tokens"] == (4 * 3 * 64 * 4, 0)
    assert counted["decode_attention", "2 runs of 20"] == (
        4 * (2 * 2 * 20 * 2 * 16 + 2 * 2 * 4 * 16),
        2 * 2 * 2 * 20 * 4 * 16,
    )
    assert counted["w8a8_matmul", "3 rows, 64 x 128"] == (64 * 128 + 3 * (64 + 128) * 4, 2 * 3 * 64 * 128)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_measuring_says_so_in_one_line_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels"], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr


def test_a_machine_without_git_has_figures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine()["commit"] is None
