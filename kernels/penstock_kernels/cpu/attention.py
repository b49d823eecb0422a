"""Attention over the paged pool, page by page where the keys and values lie: nothing is gathered or copied.

A task is one query token and one K/V head, whose query heads look at the same keys. Its numbers depend on nothing but
what that token sees.
"""

from typing import Any, NamedTuple

from numba import prange

from penstock_kernels.cpu.attention_tiles import (
    DIMS,
    MOST_HEADS,
    bf16_mix,
    bf16_scores,
    f32_mix,
    f32_scores,
    narrow_sums,
    softmax,
    wide_sums,
    zero_sums,
)
from penstock_kernels.cpu.attention_widening import (
    bf16_of_e4m3,
    bf16_of_int8,
    f32_of_e4m3,
    f32_of_int8,
    ones,
    scale_weights,
    widen_scales,
)
from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.kinds import LANES
from penstock_kernels.cpu.rounding import INT8


class Heads(NamedTuple):
    """How the pool is laid out: numbers, and strides in bytes."""

    size: int  # bytes of a number of the queries: 2 or 4
    group: int  # query heads of a K/V head
    dims: int
    page_size: int
    slot_stride: int
    kept: int  # how the pool has K and V, of `KEPT`
    scale_stride: int  # from slot to slot


class Side(NamedTuple):
    """The keys, or the values, of a K/V head in the first slot of the pool; their scales where they have 8 bits."""

    numbers: int
    scales: int


class Scratch(NamedTuple):
    """One thread's memory, float32: the scores of a group of heads, and what their values add up to; the scales of
    sixteen slots; and, where K and V have 8 bits, one side of those slots in the type of the queries."""

    scores: int
    scores_stride: int
    sums: int
    sums_stride: int
    scales: int
    block: int


class Sight(NamedTuple):
    """The slots that a token sees, from `first` up to `end`, and `start`, the first of their blocks of sixteen."""

    start: int
    first: int
    end: int


@compiled
def attend(
    threads: int,
    size: int,
    heads: int,
    kv_heads: int,
    dims: int,
    q: int,
    q_stride: int,
    pool: int,
    page_size: int,
    window: int,
    capped: int,
    numbers: int,
    scratch: int,
    context: int,
    out: int,
    out_stride: int,
    kept: int,
    scales: int,
    pages: Any,
    rows: Any,
    positions: Any,
) -> None:
    """Addresses, and strides in bytes; where the tokens belong: see `workspace.Places`. `window` 0 is none; `numbers`
    are scale and soft cap; `scratch` holds `scratch_bytes` for each thread, with room for the scores of `context`
    slots; `out` is laid out as `q` is, its rows `out_stride` apart. `kept` is of `rounding.KEPT`; where that is 8 bits,
    `scales` has their scales in float16."""
    slot_stride = 2 * kv_heads * dims * (1 if kept else size)
    layout = Heads(size, heads // kv_heads, dims, page_size, slot_stride, kept, 4 * kv_heads)
    group_bytes = layout.group * dims * size
    for thread in prange(threads):
        memory = _scratch(scratch, thread, layout.group, dims, context)
        ones(memory.scales)
        for task in range(thread, len(rows) * kv_heads, threads):
            token, head = task // kv_heads, task % kv_heads
            table, end = pages[rows[token]], positions[token] + 1
            first = max(0, end - window) if window else 0
            sight = Sight(first // LANES * LANES, first, end)
            keys = Side(pool + head * (slot_stride // (2 * kv_heads)), scales + 2 * head)
            values = Side(keys.numbers + slot_stride // 2, keys.scales + 2 * kv_heads)
            offset = token * q_stride + head * group_bytes
            _compare(layout, memory, sight, table, q + offset, keys, numbers, capped)
            _mix(layout, memory, sight, table, values)
            _answer(layout, memory, out + token * out_stride + head * group_bytes)


def scratch_bytes(heads: int, kv_heads: int, dims: int, context: int) -> int:
    """Of one thread."""
    return 4 * (heads // kv_heads * (context + -(-dims // DIMS) * DIMS) + LANES + LANES * dims)


@part
def _scratch(scratch: int, thread: int, group: int, dims: int, context: int) -> Scratch:
    """What `scratch_bytes` counts."""
    sums_stride, scores_stride = 4 * _rounded(dims, DIMS), 4 * context
    size = group * (scores_stride + sums_stride) + 4 * LANES * (1 + dims)
    scores = scratch + thread * size
    sums = scores + group * scores_stride
    scales = sums + group * sums_stride
    return Scratch(scores, scores_stride, sums, sums_stride, scales, scales + 4 * LANES)


@part
def _rounded(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@part
def _slot(layout: Heads, table: Any, slot: int) -> int:
    """The number of a slot in the pool."""
    return table[slot // layout.page_size] * layout.page_size + slot % layout.page_size


@part
def _widen(layout: Heads, memory: Scratch, side: Side, slot: int) -> None:
    """Bring sixteen slots of 8 bits, from `slot` of the pool on, into `memory`, and their scales."""
    numbers, scales = side.numbers + slot * layout.slot_stride, side.scales + slot * layout.scale_stride
    widen_scales(scales, layout.scale_stride, memory.scales)
    if layout.kept == INT8:
        if layout.size == 2:
            bf16_of_int8(numbers, layout.slot_stride, layout.dims, memory.block)
        else:
            f32_of_int8(numbers, layout.slot_stride, layout.dims, memory.block)
    elif layout.size == 2:
        bf16_of_e4m3(numbers, layout.slot_stride, layout.dims, memory.block)
    else:
        f32_of_e4m3(numbers, layout.slot_stride, layout.dims, memory.block)


@part
def _compare(
    layout: Heads, memory: Scratch, sight: Sight, table: Any, query: int, keys: Side, numbers: int, capped: int
) -> None:
    """The weights of all slots in sight, for each head of the group."""
    for block in range(sight.start, sight.end, LANES):
        slot, first, end = _slot(layout, table, block), sight.first - block, sight.end - block
        key, stride = keys.numbers + slot * layout.slot_stride, layout.slot_stride
        if layout.kept:
            _widen(layout, memory, keys, slot)
            key, stride = memory.block, layout.dims * layout.size
        for head in range(layout.group):
            asked = query + head * layout.dims * layout.size
            place = memory.scores + head * memory.scores_stride + 4 * (block - sight.start)
            if layout.size == 2:
                bf16_scores(asked, key, stride, layout.dims, first, end, numbers, capped, memory.scales, place)
            else:
                f32_scores(asked, key, stride, layout.dims, first, end, numbers, capped, memory.scales, place)
    blocks = _rounded(sight.end - sight.start, LANES) // LANES
    for head in range(layout.group):
        softmax(memory.scores + head * memory.scores_stride, blocks)


@part
def _mix(layout: Heads, memory: Scratch, sight: Sight, table: Any, values: Side) -> None:
    """The weighted sum of the values in sight, for each head of the group."""
    zero_sums(memory.sums, layout.group * memory.sums_stride)
    unit = LANES if layout.kept else layout.page_size
    slot = sight.first
    while slot < sight.end:
        slots = min(sight.end, (slot // unit + 1) * unit) - slot
        weights = memory.scores + 4 * (slot - sight.start)
        value, stride = values.numbers + _slot(layout, table, slot) * layout.slot_stride, layout.slot_stride
        if layout.kept:
            before = slot % LANES
            _widen(layout, memory, values, _slot(layout, table, slot - before))
            scale_weights(weights - 4 * before, memory.scores_stride, layout.group, memory.scales)
            stride = layout.dims * layout.size
            value = memory.block + before * stride
        for head in range(0, layout.group, MOST_HEADS):
            _mix_heads(layout, memory, head, weights + head * memory.scores_stride, value, stride, slots)
        slot += slots


@part
def _mix_heads(
    layout: Heads, memory: Scratch, head: int, weights: int, value: int, value_stride: int, slots: int
) -> None:
    """Some slots of one page, for a few heads from `head` on."""
    heads = min(MOST_HEADS, layout.group - head)
    sums, stride = memory.sums + head * memory.sums_stride, memory.sums_stride
    for dim in range(0, layout.dims, DIMS):
        part, left = value + dim * layout.size, layout.dims - dim
        if layout.size == 2:
            bf16_mix(heads, weights, memory.scores_stride, part, value_stride, slots, left, sums + 4 * dim, stride)
        else:
            f32_mix(heads, weights, memory.scores_stride, part, value_stride, slots, left, sums + 4 * dim, stride)


@part
def _answer(layout: Heads, memory: Scratch, out: int) -> None:
    for head in range(layout.group):
        sums, place = memory.sums + head * memory.sums_stride, out + head * layout.dims * layout.size
        if layout.size == 2:
            narrow_sums(sums, place, layout.dims)
        else:
            wide_sums(sums, place, layout.dims)
