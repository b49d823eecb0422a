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
from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.emit import LANES


class Heads(NamedTuple):
    """How the pool is laid out: numbers, and strides in bytes."""

    size: int  # bytes of a number: 2 or 4
    group: int  # query heads of a K/V head
    dims: int
    page_size: int
    page_stride: int
    slot_stride: int


class Scratch(NamedTuple):
    """One thread's memory, float32: the scores of a group of heads, and what their values add up to."""

    scores: int
    scores_stride: int
    sums: int
    sums_stride: int


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
    pages: Any,
    rows: Any,
    positions: Any,
) -> None:
    """Addresses, and strides in bytes; where the tokens belong: see `workspace.Places`. `window` 0 is none; `numbers`
    are scale and soft cap; `scratch` holds `scratch_bytes` for each thread, with room for the scores of `context`
    slots; `out` is laid out as `q` is, its rows `out_stride` apart."""
    slot_stride = 2 * kv_heads * dims * size
    layout = Heads(size, heads // kv_heads, dims, page_size, page_size * slot_stride, slot_stride)
    sums_stride = 4 * _rounded(dims, DIMS)
    group_bytes = layout.group * dims * size
    for thread in prange(threads):
        scores = scratch + thread * layout.group * (4 * context + sums_stride)
        memory = Scratch(scores, 4 * context, scores + layout.group * 4 * context, sums_stride)
        for task in range(thread, len(rows) * kv_heads, threads):
            token, kv_head = task // kv_heads, task % kv_heads
            table, end = pages[rows[token]], positions[token] + 1
            first = max(0, end - window) if window else 0
            sight = Sight(first // LANES * LANES, first, end)
            keys, offset = pool + kv_head * dims * size, token * q_stride + kv_head * group_bytes
            _compare(layout, memory, sight, table, q + offset, keys, numbers, capped)
            _mix(layout, memory, sight, table, keys + kv_heads * dims * size)
            _answer(layout, memory, out + token * out_stride + kv_head * group_bytes)


def scratch_bytes(heads: int, kv_heads: int, dims: int, context: int) -> int:
    """Of one thread."""
    return heads // kv_heads * 4 * (context + -(-dims // DIMS) * DIMS)


@part
def _rounded(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@part
def _slot(layout: Heads, table: Any, slot: int) -> int:
    """Where a slot lies, from the beginning of its pool on."""
    page = table[slot // layout.page_size]
    return page * layout.page_stride + slot % layout.page_size * layout.slot_stride


@part
def _compare(
    layout: Heads, memory: Scratch, sight: Sight, table: Any, query: int, keys: int, numbers: int, capped: int
) -> None:
    """The weights of all slots in sight, for each head of the group."""
    for block in range(sight.start, sight.end, LANES):
        key, first, end = keys + _slot(layout, table, block), sight.first - block, sight.end - block
        for head in range(layout.group):
            asked = query + head * layout.dims * layout.size
            place = memory.scores + head * memory.scores_stride + 4 * (block - sight.start)
            if layout.size == 2:
                bf16_scores(asked, key, layout.slot_stride, layout.dims, first, end, numbers, capped, place)
            else:
                f32_scores(asked, key, layout.slot_stride, layout.dims, first, end, numbers, capped, place)
    blocks = _rounded(sight.end - sight.start, LANES) // LANES
    for head in range(layout.group):
        softmax(memory.scores + head * memory.scores_stride, blocks)


@part
def _mix(layout: Heads, memory: Scratch, sight: Sight, table: Any, values: int) -> None:
    """The weighted sum of the values in sight, for each head of the group."""
    zero_sums(memory.sums, layout.group * memory.sums_stride)
    slot = sight.first
    while slot < sight.end:
        slots = min(sight.end, (slot // layout.page_size + 1) * layout.page_size) - slot
        weights = memory.scores + 4 * (slot - sight.start)
        value = values + _slot(layout, table, slot)
        for head in range(0, layout.group, MOST_HEADS):
            _mix_heads(layout, memory, head, weights + head * memory.scores_stride, value, slots)
        slot += slots


@part
def _mix_heads(layout: Heads, memory: Scratch, head: int, weights: int, value: int, slots: int) -> None:
    """Some slots of one page, for a few heads from `head` on."""
    heads = min(MOST_HEADS, layout.group - head)
    sums, stride = memory.sums + head * memory.sums_stride, memory.sums_stride
    for dim in range(0, layout.dims, DIMS):
        part, left = value + dim * layout.size, layout.dims - dim
        if layout.size == 2:
            bf16_mix(
                heads, weights, memory.scores_stride, part, layout.slot_stride, slots, left, sums + 4 * dim, stride
            )
        else:
            f32_mix(heads, weights, memory.scores_stride, part, layout.slot_stride, slots, left, sums + 4 * dim, stride)


@part
def _answer(layout: Heads, memory: Scratch, out: int) -> None:
    for head in range(layout.group):
        sums, place = memory.sums + head * memory.sums_stride, out + head * layout.dims * layout.size
        if layout.size == 2:
            narrow_sums(sums, place, layout.dims)
        else:
            wide_sums(sums, place, layout.dims)
