"""The attention kernels on a GPU: in the dtypes that models use, with the tiles that are launched, and in graphs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from penstock_kernels.gpu import store_kv as gpu_store
from penstock_kernels.gpu.decode_attention import decode_attention
from penstock_kernels.gpu.extend_attention import extend_attention
from penstock_kernels.kv import LARGEST
from penstock_kernels.store_kv import store_kv
from torch import Tensor

from tests.kernels.attention_batches import Batch, make_batch, relative_error

BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}  # of the relative error
PREFILL = [(1000, 1000), (129, 2049), (1, 3000), (17, 17)]
DECODE = [(1, 1), (1, 17), (1, 4097), (3, 700), (1, 0)]
LLAMA = {"heads": 32, "kv_heads": 8, "head_dim": 128, "page_size": 16, "device": "cuda"}
KERNELS = [(extend_attention, PREFILL), (decode_attention, DECODE), (extend_attention, DECODE)]


def error(kernel: Any, batch: Batch, **options: Any) -> float:
    return relative_error(batch.answer(kernel, **options), batch.exact())


@pytest.fixture
def seed() -> int:
    return int(torch.randint(1 << 30, ()))


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("kernel", "runs"), KERNELS)
def test_every_dtype(kernel: Any, runs: list[tuple[int, int]], dtype: torch.dtype, seed: int) -> None:
    assert error(kernel, make_batch(runs, dtype=dtype, seed=seed, **LLAMA)) < BOUNDS[dtype]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(14, 2, 64), (32, 32, 96), (16, 8, 256), (5, 1, 80)])
@pytest.mark.parametrize(("kernel", "runs"), KERNELS)
def test_head_sizes_and_groups(
    kernel: Any, runs: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int, seed: int
) -> None:
    shape = {**LLAMA, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    assert error(kernel, make_batch(runs, dtype=torch.bfloat16, seed=seed, **shape)) < BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("pool_dtype", [None, *LARGEST])
@pytest.mark.parametrize(("window", "softcap"), [(None, 20.0), (512, None), (100, 5.0)])
@pytest.mark.parametrize(("kernel", "runs"), KERNELS)
def test_options(
    kernel: Any,
    runs: list[tuple[int, int]],
    window: int | None,
    softcap: float | None,
    pool_dtype: torch.dtype | None,
    seed: int,
) -> None:
    options = {"window": window, "softcap": softcap, "pool_dtype": pool_dtype}
    assert error(kernel, make_batch(runs, dtype=torch.bfloat16, seed=seed, **options, **LLAMA)) < BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("splits", [1, 2, 7, 64])
def test_any_number_of_splits(splits: int, seed: int) -> None:
    batch = make_batch(DECODE, dtype=torch.bfloat16, seed=seed, **LLAMA)
    assert error(decode_attention, batch, splits=splits) < BOUNDS[torch.bfloat16]


def test_neighbours_and_chunks_change_no_bit(seed: int) -> None:
    """Prompt and decoding by the same kernel: queries anywhere in a tile, alone or beside other runs."""
    batch = make_batch([(700, 700), (33, 900)], dtype=torch.bfloat16, seed=seed, **LLAMA)
    whole = batch.answer(extend_attention)
    for begin, count in ((0, 700), (1, 33), (512, 188), (699, 1)):
        part = replace(
            batch,
            q=batch.q[begin : begin + count],
            page_table=batch.page_table[:1],
            query_starts=torch.tensor([0, count], dtype=torch.int32, device="cuda"),
            context_lens=torch.tensor([begin + count], dtype=torch.int32, device="cuda"),
        )
        assert torch.equal(part.answer(extend_attention), whole[begin : begin + count])


@pytest.mark.parametrize("kernel", [extend_attention, decode_attention])
def test_a_captured_graph_serves_other_batches_of_its_bounds(kernel: Any, seed: int) -> None:
    """Captured for 8 runs of at most 4,096 positions; replayed on fewer and shorter ones, the rest of them padding."""
    lives = [make_batch(runs, dtype=torch.bfloat16, seed=seed, **LLAMA) for runs in _decode_batches()]
    static = replace(lives[0], pool=torch.zeros(1200, *lives[0].pool.shape[1:], dtype=torch.bfloat16, device="cuda"))
    table = torch.zeros(8, 256, dtype=torch.int32, device="cuda")
    static = replace(static, page_table=table)
    out = torch.empty(10, 32 * 128, dtype=torch.bfloat16, device="cuda")

    def launch() -> None:
        kernel(*static.arguments, out, **static.options, max_query_len=1, max_context_len=4096)

    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for live in lives:
        _fill(static, live)
        out.fill_(torch.nan)
        graph.replay()
        assert relative_error(out, live.exact()) < BOUNDS[torch.bfloat16]


def _decode_batches() -> list[list[tuple[int, int]]]:
    return [[(1, 17 * n) for n in range(1, 9)], [(1, 4096), (1, 3), *[(1, 0)] * 6], [(1, 1500)] * 8]


def _fill(static: Batch, live: Batch) -> None:
    for name in ("q", "query_starts", "context_lens"):
        getattr(static, name).copy_(getattr(live, name))
    static.pool[: len(live.pool)] = live.pool
    static.page_table.zero_()[:, : live.page_table.shape[1]] = live.page_table[:, :256]


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("pool_dtype", LARGEST)
def test_storing_quantizes_bit_for_bit_as_the_reference(
    pool_dtype: torch.dtype, scale_dtype: torch.dtype, seed: int
) -> None:
    """Unlike in the interpreter, also where an 8-bit float rounds."""
    drawn = torch.Generator("cuda").manual_seed(seed)
    kv = torch.randn(777, 16, 128, generator=drawn, device="cuda").bfloat16()
    slots = torch.randperm(1000, generator=drawn, device="cuda")[:777]
    kept = [_stored(store, slots, kv, pool_dtype, scale_dtype) for store in (gpu_store.store_kv, store_kv)]
    assert torch.equal(kept[0][0].view(torch.int8), kept[1][0].view(torch.int8))
    assert torch.equal(kept[0][1], kept[1][1])


def _stored(
    store: Any, slots: Tensor, kv: Tensor, pool_dtype: torch.dtype, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    pool = torch.zeros(1000, *kv.shape[1:], device="cuda").to(pool_dtype)
    scales = torch.zeros(pool.shape[:2], dtype=scale_dtype, device="cuda")
    store(pool, slots, kv, scales)
    return pool, scales
