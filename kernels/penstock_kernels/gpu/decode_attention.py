"""Attention for runs of one query, or a few: decoding, over a paged context.

The work is to read K and V once, 4 KB for each position of a Llama-3.1-8B layer: at 64 runs of 4,096 positions 1.07 GB,
0.25 ms at 4.3 TB/s. So the context of a run is cut into splits, a program for each (Q-block, K/V head, split); with
more than one split, each leaves its part of the answer and the logarithm of its weight, and a second kernel adds up.

Neighbouring programs read neighbouring heads of the same slots. The grid follows from the bounds on the batch alone, so
that a captured graph serves every batch within them; how much of its context a split takes is decided on the GPU, by
the run's own length.
Source: Dao et al., "Flash-Decoding", 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.attention import check_paged_attention
from penstock_kernels.checks import ShapeError
from penstock_kernels.gpu.attention_cases import attention_case
from penstock_kernels.gpu.attention_core import NEVER, TINY, attend
from penstock_kernels.gpu.attention_tiles import Tiles, decode_tiles, device_capability, multiprocessors
from penstock_kernels.gpu.attention_variants import VARIANTS, Variant
from penstock_kernels.gpu.cases import SM90, CompileCase, pointer
from penstock_kernels.gpu.tile_candidates import DECODE, attention_candidates, attention_class
from penstock_kernels.gpu.tuning import tuned

SHORTEST_SPLIT = 128  # positions: below, a program takes longer to start than to read them, 64 KB
LONGEST_SPLIT = 4096  # positions: a longer one, of the longest run, would still be reading when all others are done
MOST_SPLITS = 64
PROGRAMS_PER_MULTIPROCESSOR = 4  # three fit at a time; one more keeps memory busy while others start and end
REDUCE_WARPS = 4
VARYING = ("blocks", "splits", "window", "max_query_len", "table_stride")  # a value of 1, say, is no kernel of its own


def split_count(programs: int, max_context_len: int, processors: int) -> int:
    """Into how many parts the context of a run is cut, where uncut there would be `programs` for `processors`.

    As many as give every multiprocessor its programs, and as keep a split from being longer than LONGEST_SPLIT; no
    more than leave a split SHORTEST_SPLIT positions, of the longest context that there may be.
    """
    to_fill = -(-PROGRAMS_PER_MULTIPROCESSOR * processors // programs)
    to_bound = -(-max_context_len // LONGEST_SPLIT)
    useful = -(-max_context_len // SHORTEST_SPLIT)
    return max(1, min(max(to_fill, to_bound), useful, MOST_SPLITS))


def decode_attention(
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
    splits: int | None = None,
    tiles: Tiles | None = None,
) -> None:
    """As `penstock_kernels.attention.paged_attention`, for a `max_query_len` of a few.

    `splits` and `tiles` take the place of what `split_count` and the table choose. With a fixed number of splits a
    query's numbers depend on its own context alone, and not on its neighbours in the batch.
    """
    check_paged_attention(q, pool, page_table, query_starts, context_lens, out, scale, window, softcap, scales)
    runs = len(context_lens)
    if len(q) == 0 or runs == 0 or max_query_len == 0:
        return
    layer = Variant.of(q, pool, window, softcap, scales)
    in_code = decode_tiles(layer, device_capability(q.device))
    chosen = tiles or tuned(DECODE, attention_class(layer), in_code, q.device).holding(layer.group)
    blocks = triton.cdiv(max_query_len, chosen.block_m // layer.group)
    programs = runs * layer.kv_heads * blocks
    reach = max_context_len if window is None else min(max_context_len, window + max_query_len)
    count = _checked(splits) or split_count(programs, reach, multiprocessors(q.device))
    parts, logs = _room(q, count)
    decode_attention_kernel[(programs * count,)](
        q, pool, scales, page_table, query_starts, context_lens, parts if count > 1 else out, logs, blocks, count,
        scale, window or 0, softcap or 0.0, q.stride(0), q.stride(1), pool.stride(0),
        0 if scales is None else scales.stride(0), page_table.stride(0), out.stride(0), **layer.constants(),
        SPLIT=count > 1, SHORTEST=SHORTEST_SPLIT, BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
    if count > 1:
        merge_splits_kernel[(runs * max_query_len, layer.heads)](
            parts, logs, query_starts, context_lens, out, max_query_len, count, window or 0, out.stride(0),
            WINDOWED=layer.windowed, HEADS=layer.heads, HEAD_DIM=layer.head_dim,
            DIM_PAD=layer.dim_pad, SPLITS_PAD=max(MOST_SPLITS, triton.next_power_of_2(count)),
            SHORTEST=SHORTEST_SPLIT, BLOCK_N=chosen.block_n, num_warps=REDUCE_WARPS,
        )  # fmt: skip


def _checked(splits: int | None) -> int | None:
    if splits is not None and splits < 1:
        raise ShapeError(f"splits is {splits} and should be at least 1")
    return splits


def _room(q: Tensor, splits: int) -> tuple[Tensor | None, Tensor | None]:
    """For each split's part of the answer and the logarithm of its weight."""
    if splits == 1:
        return None, None
    tokens, heads, head_dim = q.shape
    parts = torch.empty(tokens, heads, splits, head_dim, dtype=torch.float32, device=q.device)
    return parts, torch.empty(tokens, heads, splits, dtype=torch.float32, device=q.device)


@triton.jit
def split_len(queries, context, window, splits, WINDOWED: tl.constexpr, SHORTEST: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first position of the first split, positions of each split), both multiples of BLOCK_N, for one run."""
    begin = 0
    if WINDOWED:
        begin = tl.maximum(context - queries - window + 1, 0) // BLOCK_N * BLOCK_N
    each = tl.maximum(tl.cdiv(context - begin, splits), SHORTEST)
    return begin, tl.cdiv(each, BLOCK_N) * BLOCK_N


@triton.jit(do_not_specialize=VARYING)
def decode_attention_kernel(
    q,
    pool,
    scales,
    page_table,
    query_starts,
    context_lens,
    out,
    logs,
    blocks,
    splits,
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
    SPLIT: tl.constexpr,
    SHORTEST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`out` is the answer, or, where the context is SPLIT, [tokens, heads, splits, HEAD_DIM] with `logs` beside it."""
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % KV_HEADS
    rest = tl.program_id(0) // KV_HEADS
    index = rest % blocks * QUERIES
    split = rest // blocks % splits
    run = rest // blocks // splits
    start = tl.load(query_starts + run)
    queries = tl.load(query_starts + run + 1) - start
    context = tl.load(context_lens + run)
    begin, each = split_len(queries, context, window, splits, WINDOWED, SHORTEST, BLOCK_N)
    lower = begin + split * each
    upper = tl.minimum(lower + each, context)
    # The first split answers for a padding run, whose context is 0, too.
    if (index < queries) & ((lower < context) | (split == 0)):
        first = context - queries + index
        last = first + tl.minimum(QUERIES, queries - index) - 1
        rows = tl.arange(0, BLOCK_M)
        query, head = rows // GROUP, kv_head * GROUP + rows % GROUP
        dims = tl.arange(0, DIM_PAD)
        real = (rows < QUERIES * GROUP) & (index + query < queries)
        mask = real[:, None] & (dims < HEAD_DIM)[None, :]
        token = (start + index).to(tl.int64) + query
        q_rows = q + token * q_token_stride + head * q_head_stride
        q_tile = tl.load(q_rows[:, None] + dims[None, :], mask=mask, other=0.0)
        acc, peak, total = attend(
            q_tile, first + query, pool, scales, page_table + run.to(tl.int64) * table_stride, kv_head,
            first, last, context, lower, upper, page_stride, scale_page_stride, scale, window, softcap,
            WINDOWED, CAPPED, QUANTIZED, KV_HEADS, PAGE, HEAD_DIM, DIM_PAD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        done = acc / tl.maximum(total, TINY)[:, None]
        if SPLIT:
            part = (token * (KV_HEADS * GROUP) + head) * splits + split
            tl.store(out + (part * HEAD_DIM)[:, None] + dims[None, :], done, mask=mask)
            tl.store(logs + part, peak + tl.log2(tl.maximum(total, TINY)), mask=real)
        else:
            out_rows = out + token * out_stride + head * HEAD_DIM
            tl.store(out_rows[:, None] + dims[None, :], done.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def merge_splits_kernel(
    parts,
    logs,
    query_starts,
    context_lens,
    out,
    max_query_len,
    splits,
    window,
    out_stride,
    WINDOWED: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    SHORTEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One head of one query: its parts, weighted by 2^logs; parts that no split of this run wrote are not looked at."""
    run, index = tl.program_id(0) // max_query_len, tl.program_id(0) % max_query_len
    head = tl.program_id(1)
    start = tl.load(query_starts + run)
    queries = tl.load(query_starts + run + 1) - start
    if index < queries:
        context = tl.load(context_lens + run)
        begin, each = split_len(queries, context, window, splits, WINDOWED, SHORTEST, BLOCK_N)
        token = (start + index).to(tl.int64)
        split, dims = tl.arange(0, SPLITS_PAD), tl.arange(0, DIM_PAD)
        written = (begin + split * each < context) & (split < splits)
        part = (token * HEADS + head) * splits + split
        weight_logs = tl.load(logs + part, mask=written, other=NEVER)
        mask = written[:, None] & (dims < HEAD_DIM)[None, :]
        values = tl.load(parts + (part * HEAD_DIM)[:, None] + dims[None, :], mask=mask, other=0.0)
        weights = tl.where(written, tl.exp2(weight_logs - tl.max(weight_logs, axis=0)), 0.0)
        merged = tl.sum(values * weights[:, None], axis=0) / tl.maximum(tl.sum(weights, axis=0), TINY)
        row = out + token * out_stride + head * HEAD_DIM
        tl.store(row + dims, merged.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def compile_cases() -> list[CompileCase]:
    """Each layer of `VARIANTS` with all tiles that may be chosen, split, and once whole; and the second kernel."""
    attending = [
        _case(each, tiles.holding(each.group), split=True)
        for each in VARIANTS
        for tiles in attention_candidates(DECODE, each, decode_tiles(each, SM90))
    ]
    whole = _case(VARIANTS[0], decode_tiles(VARIANTS[0], SM90), split=False)
    return [whole, *attending, *(_merge_case(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32))]


def _case(layer: Variant, tiles: Tiles, *, split: bool) -> CompileCase:
    types = {"logs": "*fp32", "blocks": "i32", "splits": "i32"} | ({"out": "*fp32"} if split else {})
    own: dict[str, object] = {"SPLIT": split, "SHORTEST": SHORTEST_SPLIT} | ({} if split else {"logs": None})
    name = "decode_attention" + (" split" if split else " whole")
    return attention_case(decode_attention_kernel, name, layer, tiles, types, **own)


def _merge_case(dtype: torch.dtype) -> CompileCase:
    types = {"parts": "*fp32", "logs": "*fp32", "query_starts": "*i32", "context_lens": "*i32", "out": pointer(dtype)}
    types |= dict.fromkeys(("max_query_len", "splits", "window", "out_stride"), "i32")
    own = {"WINDOWED": False, "HEADS": 32, "HEAD_DIM": 128, "DIM_PAD": 128, "SPLITS_PAD": MOST_SPLITS}
    return CompileCase(
        merge_splits_kernel,
        types,
        {**own, "SHORTEST": SHORTEST_SPLIT, "BLOCK_N": 64},
        REDUCE_WARPS,
        1,
        f"merge_splits[32 x 128, {str(dtype).removeprefix('torch.')}]",
        ("out_stride",),
    )
