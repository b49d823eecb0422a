"""What the attention kernels share: softmax over tiles of a paged context.

Scores are kept as they come out of the product; `gain`, the scale times log2(e), is applied where the exponent is
taken, which then is one fused multiply-add, and powers are of two. What a row does not see scores NEVER: finite, so
that no difference of two infinities arises. A row that saw nothing yet may sum up such a tile with weight 1; the first
thing that it does see scales that sum by 2^-1e29, exactly zero.

A span of the context is cut at multiples of BLOCK_N from position 0, whoever asks, and tiles that a row does not see
change none of its bits: so a query's numbers depend neither on its neighbours in the batch nor on how its prompt was
cut into chunks.
Source: Dao, "FlashAttention-2", 2023.
"""

import triton
import triton.language as tl

NEVER = tl.constexpr(-1.0e30)
LOG2_E = tl.constexpr(1.4426950408889634)
TINY = tl.constexpr(1.0e-30)


@triton.jit
def seen_span(first, last, context, window, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr):
    """What queries at positions `first` to `last` look at: (floor, begin, full_begin, full_end, end).

    They see nothing below `floor`, nor from `end` on; tiles from `full_begin` to `full_end` every one of them sees
    whole. `begin` and the bounds of the full tiles are multiples of BLOCK_N; begin <= full_begin <= full_end <= end.
    """
    floor = 0
    clear = 0
    if WINDOWED:
        floor = tl.maximum(first - window + 1, 0)
        clear = tl.maximum(last - window + 1, 0)
    end = tl.minimum(last + 1, context)
    begin = floor // BLOCK_N * BLOCK_N
    full_end = tl.maximum((first + 1) // BLOCK_N * BLOCK_N, begin)
    full_begin = tl.minimum(tl.cdiv(clear, BLOCK_N) * BLOCK_N, full_end)
    return floor, begin, full_begin, full_end, end


@triton.jit
def load_pages(pages, start, floor, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_N], the page of each position from `start` on; the null page below `floor` and from `end` on."""
    positions = start + tl.arange(0, BLOCK_N)
    return tl.load(pages + positions // PAGE, mask=(positions >= floor) & (positions < end), other=0)


@triton.jit
def load_tile(base, offsets, valid, dims, EDGE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr):
    """[BLOCK_N, DIM_PAD] of K or V; rows that are not `valid`, which only an EDGE has, are zero."""
    pointers = base + offsets[:, None] + dims[None, :]
    if EDGE or HEAD_DIM != DIM_PAD:
        tile = tl.load(pointers, mask=valid[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def load_scales(base, offsets, valid, EDGE: tl.constexpr):
    """[BLOCK_N] of the K or V scales of a quantized pool, in float32."""
    scales = tl.load(base + offsets, mask=valid, other=0.0) if EDGE else tl.load(base + offsets)
    return scales.to(tl.float32)


@triton.jit
def soft_capped(scores, scale, softcap):
    """softcap * tanh(scores * scale / softcap), by an exponential that cannot overflow."""
    x = scores * (scale / softcap)
    shrunk = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    size = (1.0 - shrunk) / (1.0 + shrunk) * softcap
    return tl.where(x < 0, -size, size)


@triton.jit
def attend_tiles(
    acc,
    peak,
    total,
    q,
    at,
    keys,
    values,
    key_scales,
    value_scales,
    pages,
    begin,
    end,
    floor,
    page_stride,
    scale_page_stride,
    scale,
    window,
    softcap,
    EDGE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take the context from `begin` to `end` into (acc, peak, total); an EDGE has tiles not seen whole by every row."""
    dims = tl.arange(0, DIM_PAD)
    gain = LOG2_E if CAPPED else scale * LOG2_E
    following = load_pages(pages, begin, floor, end, PAGE, BLOCK_N)
    for start in tl.range(begin, end, BLOCK_N):
        positions = start + tl.arange(0, BLOCK_N)
        valid = (positions >= floor) & (positions < end)
        page = following.to(tl.int64)
        following = load_pages(pages, start + BLOCK_N, floor, end, PAGE, BLOCK_N)
        offsets = page * page_stride + (positions % PAGE) * (2 * KV_HEADS * HEAD_DIM)
        k = load_tile(keys, offsets, valid, dims, EDGE, HEAD_DIM, DIM_PAD)
        v = load_tile(values, offsets, valid, dims, EDGE, HEAD_DIM, DIM_PAD)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if QUANTIZED:
            scale_offsets = page * scale_page_stride + (positions % PAGE) * (2 * KV_HEADS)
            scores *= load_scales(key_scales, scale_offsets, valid, EDGE)[None, :]
        if CAPPED:
            scores = soft_capped(scores, scale, softcap)
        if EDGE:
            seen = valid[None, :] & (positions[None, :] <= at[:, None])
            if WINDOWED:
                seen &= positions[None, :] > at[:, None] - window
            scores = tl.where(seen, scores, NEVER)
        higher = tl.maximum(peak, tl.max(scores, axis=1) * gain)
        weights = tl.exp2(scores * gain - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        acc *= shrink[:, None]
        if QUANTIZED:
            weights *= load_scales(value_scales, scale_offsets, valid, EDGE)[None, :]
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
        peak = higher
    return acc, peak, total


@triton.jit
def attend(
    q,
    at,
    pool,
    scales,
    pages,
    kv_head,
    first,
    last,
    context,
    lower,
    upper,
    page_stride,
    scale_page_stride,
    scale,
    window,
    softcap,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend rows `q` [BLOCK_M, DIM_PAD] at positions `at`, `first` to `last`, to the context from `lower` to `upper`.

    Returns (acc, peak, total): `acc` [BLOCK_M, DIM_PAD] is the sum of values and `total` [BLOCK_M] of weights, both
    relative to 2^`peak`. `lower` is a multiple of BLOCK_N, and `upper` is one or the end.
    """
    keys = pool + kv_head * HEAD_DIM
    values = keys + KV_HEADS * HEAD_DIM
    key_scales = scales
    value_scales = scales
    if QUANTIZED:
        key_scales = scales + kv_head
        value_scales = key_scales + KV_HEADS
    floor, begin, full_begin, full_end, end = seen_span(first, last, context, window, WINDOWED, BLOCK_N)
    begin, end = tl.maximum(begin, lower), tl.minimum(end, upper)
    full_begin, full_end = tl.maximum(full_begin, begin), tl.minimum(full_end, end)
    full_begin = tl.minimum(full_begin, tl.maximum(full_end, begin))
    acc = tl.zeros([BLOCK_M, DIM_PAD], dtype=tl.float32)
    peak = tl.full([BLOCK_M], NEVER, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    if WINDOWED:
        acc, peak, total = attend_tiles(
            acc, peak, total, q, at, keys, values, key_scales, value_scales, pages, begin, full_begin, floor,
            page_stride, scale_page_stride, scale, window, softcap,
            True, WINDOWED, CAPPED, QUANTIZED, KV_HEADS, PAGE, HEAD_DIM, DIM_PAD, BLOCK_N,
        )  # fmt: skip
    else:
        full_begin = begin
    acc, peak, total = attend_tiles(
        acc, peak, total, q, at, keys, values, key_scales, value_scales, pages, full_begin, full_end, floor,
        page_stride, scale_page_stride, scale, window, softcap,
        False, WINDOWED, CAPPED, QUANTIZED, KV_HEADS, PAGE, HEAD_DIM, DIM_PAD, BLOCK_N,
    )  # fmt: skip
    return attend_tiles(
        acc, peak, total, q, at, keys, values, key_scales, value_scales, pages, tl.maximum(full_end, begin), end, floor,
        page_stride, scale_page_stride, scale, window, softcap,
        True, WINDOWED, CAPPED, QUANTIZED, KV_HEADS, PAGE, HEAD_DIM, DIM_PAD, BLOCK_N,
    )  # fmt: skip
