"""Attention for runs of many queries: prefill chunks, alone or mixed with decoding, over a paged context.

One program takes a Q-block, the query heads of one K/V head for some successive queries of one run, through all that
they see. The grid is over Q-blocks, of which `tokens` queries in `runs` runs have at most tokens // queries_per_block +
runs; what is too many ends at once. Blocks late in a run see the most and start first.

At 8,192 tokens of prompt, 32 heads of 128, that is 0.55 TFLOP in 2,048 programs: arithmetic is what bounds it.
Bitwise the same for a query whatever its neighbours and however its prompt was cut; see `attention_core`.
"""

import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.attention import check_paged_attention
from penstock_kernels.gpu.attention_cases import attention_case
from penstock_kernels.gpu.attention_core import TINY, attend
from penstock_kernels.gpu.attention_tiles import Tiles, device_capability, extend_tiles
from penstock_kernels.gpu.attention_variants import VARIANTS, Variant
from penstock_kernels.gpu.cases import SM90, CompileCase
from penstock_kernels.gpu.tile_candidates import EXTEND, attention_candidates, attention_class
from penstock_kernels.gpu.tuning import tuned


def extend_attention(
    q: Tensor,
    pool: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
    max_context_len: int,
    scales: Tensor | None = None,
    tiles: Tiles | None = None,
) -> None:
    """As `penstock_kernels.attention.paged_attention`; `tiles` in place of those of the table, for tuning and tests.

    The grid follows from the shapes of `q` and `context_lens` alone, so the launch can be captured in a CUDA graph;
    `max_query_len` and `max_context_len` are not needed here.
    """
    del max_query_len, max_context_len
    check_paged_attention(q, pool, page_table, query_starts, context_lens, out, scale, window, softcap, scales)
    tokens, runs = len(q), len(context_lens)
    if tokens == 0 or runs == 0:
        return
    layer = Variant.of(q, pool, window, softcap, scales)
    in_code = extend_tiles(layer, device_capability(q.device))
    chosen = tiles or tuned(EXTEND, attention_class(layer), in_code, q.device).holding(layer.group)
    blocks = tokens // (chosen.block_m // layer.group) + runs
    extend_attention_kernel[(blocks * layer.kv_heads,)](
        q, pool, scales, page_table, query_starts, context_lens, out, runs, scale, window or 0, softcap or 0.0,
        q.stride(0), q.stride(1), pool.stride(0), 0 if scales is None else scales.stride(0), page_table.stride(0),
        out.stride(0), **layer.constants(), BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=("runs", "window", "table_stride"))
def extend_attention_kernel(
    q,
    pool,
    scales,
    page_table,
    query_starts,
    context_lens,
    out,
    runs,
    scale,
    window,
    softcap,
    q_token_stride,
    q_head_stride,
    page_stride,
    scale_page_stride,
    table_stride,
    out_stride,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % KV_HEADS
    block = (tl.num_programs(0) - 1 - tl.program_id(0)) // KV_HEADS
    run, first_block = run_of_block(query_starts, runs, block, QUERIES)
    start = tl.load(query_starts + run)
    queries = tl.load(query_starts + run + 1) - start
    index = (block - first_block) * QUERIES
    if index < queries:
        context = tl.load(context_lens + run)
        first = context - queries + index
        last = first + tl.minimum(QUERIES, queries - index) - 1
        rows = tl.arange(0, BLOCK_M)
        query, head = rows // GROUP, kv_head * GROUP + rows % GROUP
        dims = tl.arange(0, DIM_PAD)
        real = (rows < QUERIES * GROUP) & (index + query < queries)
        mask = real[:, None] & (dims < HEAD_DIM)[None, :]
        token = (start + index).to(tl.int64)
        q_rows = q + token * q_token_stride + query * q_token_stride + head * q_head_stride
        q_tile = tl.load(q_rows[:, None] + dims[None, :], mask=mask, other=0.0)
        acc, _, total = attend(
            q_tile, first + query, pool, scales, page_table + run.to(tl.int64) * table_stride, kv_head,
            first, last, context, 0, context, page_stride, scale_page_stride, scale, window, softcap,
            WINDOWED, CAPPED, QUANTIZED, KV_HEADS, PAGE, HEAD_DIM, DIM_PAD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        # A padding run has no context: nothing was summed up, and its rows are zero.
        done = acc / tl.maximum(total, TINY)[:, None]
        out_rows = out + token * out_stride + query * out_stride + head * HEAD_DIM
        tl.store(out_rows[:, None] + dims[None, :], done.to(out.dtype.element_ty), mask=mask)


@triton.jit
def run_of_block(query_starts, runs, block, QUERIES: tl.constexpr):
    """(run, its first block): run r has its own blocks from query_starts[r] // QUERIES + r on.

    That leaves every run room for its queries: blocks that it does not need lie behind them.
    """
    run = -1
    for begin in range(0, runs, 256):
        index = begin + tl.arange(0, 256)
        starts = tl.load(query_starts + index, mask=index < runs, other=0)
        run += tl.sum(((starts // QUERIES + index <= block) & (index < runs)).to(tl.int32))
    return run, tl.load(query_starts + run) // QUERIES + run


def compile_cases() -> list[CompileCase]:
    """Each layer of `VARIANTS` with all tiles that may be chosen."""
    return [
        attention_case(extend_attention_kernel, "extend_attention", each, tiles.holding(each.group), {})
        for each in VARIANTS
        for tiles in attention_candidates(EXTEND, each, extend_tiles(each, SM90))
    ]
