"""The inner loops of attention: sixteen slots of the pool at a time against the query heads of one K/V head.

Blocks of sixteen slots begin at multiples of sixteen of the context, and sums go through the slots in their order:
what a query sees is all that decides its numbers. Slots that it does not see are never multiplied with: whatever lies
there, NaN included, cannot reach it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, LANES, PAIRS, Value

MOST_HEADS = 4  # weighed together: 16 sums and the values of one slot in registers
DIMS = 4 * LANES  # weighed together

Load = Callable[[Value, Value], Value]  # an address and how many lanes lie within: floats

SCALE, SOFTCAP = 0, 4  # offsets in bytes into the numbers of a call


class Scores(NamedTuple):
    """One query head against sixteen slots: addresses, strides in bytes, counts."""

    query: Value
    keys: Value  # of the first slot
    slot_stride: Value
    dims: Value
    first: Value  # slots before this one, and from `end` on, are not seen
    end: Value
    numbers: Value  # float32: scale, soft cap
    capped: Value  # 1: scores are pressed into (-soft cap, soft cap)
    scales: Value  # float32 [16], of the keys
    out: Value  # float32 [16]


class Weights(NamedTuple):
    scores: Value  # float32 [blocks, 16], overwritten
    blocks: Value


class Mix(NamedTuple):
    """Some slots' values, by the weights of a few heads, added to the heads' sums."""

    heads: Value  # 1 to MOST_HEADS
    weights: Value  # of the first slot and head
    weights_stride: Value  # from head to head
    values: Value  # of the first slot
    slot_stride: Value
    slots: Value
    dims: Value  # that lie within the head; at most DIMS of them are mixed
    sums: Value  # float32
    sums_stride: Value


@micro_kernel(Scores)
def bf16_scores(e: Emitter, given: Scores) -> None:
    """Of bfloat16 queries and keys."""

    def step(index: Value, totals: list[Value]) -> list[Value]:
        done = e.mul(index, 2 * LANES)
        left, offset = e.sub(given.dims, done), e.mul(done, 2)
        query = e.load_first(e.add(given.query, offset), left, PAIRS)
        keys = [e.add(given.keys, offset, e.mul(given.slot_stride, slot)) for slot in range(LANES)]
        return [e.dot_bf16(t, query, e.load_first(key, left, PAIRS)) for t, key in zip(totals, keys, strict=True)]

    _write_scores(e, given, e.loop(e.steps(given.dims, 2 * LANES), [e.splat(0.0)] * LANES, step))


@micro_kernel(Scores)
def f32_scores(e: Emitter, given: Scores) -> None:
    """Of float32 queries and keys."""

    def step(index: Value, totals: list[Value]) -> list[Value]:
        done = e.mul(index, LANES)
        left, offset = e.sub(given.dims, done), e.mul(done, 4)
        query = e.load_first(e.add(given.query, offset), left)
        keys = [e.add(given.keys, offset, e.mul(given.slot_stride, slot)) for slot in range(LANES)]
        return [e.fma(query, e.load_first(key, left), t) for t, key in zip(totals, keys, strict=True)]

    _write_scores(e, given, e.loop(e.steps(given.dims, LANES), [e.splat(0.0)] * LANES, step))


def _write_scores(e: Emitter, given: Scores, products: list[Value]) -> None:
    scores = e.times(e.totals(products), e.load(given.scales))
    scores = e.times(scores, e.load_number(e.add(given.numbers, SCALE)))

    def write(scores: Value) -> None:
        seen = e.choose(e.below(given.first), e.splat(float("-inf")), scores)
        e.store(given.out, e.choose(e.below(given.end), seen, e.splat(float("-inf"))))

    def write_capped() -> None:
        cap = e.load_number(e.add(given.numbers, SOFTCAP))
        write(e.times(e.tanh(e.over(scores, cap)), cap))

    e.switch(given.capped, {0: partial(write, scores), 1: write_capped})


@micro_kernel(Weights)
def softmax(e: Emitter, given: Weights) -> None:
    """Turn scores into weights that add up to 1."""

    def at(index: Value) -> Value:
        return e.add(given.scores, e.mul(index, BYTES))

    def look(index: Value, greatest: list[Value]) -> list[Value]:
        return [e.greater(greatest[0], e.load(at(index)))]

    greatest = e.spread(e.greatest(e.loop(given.blocks, [e.splat(float("-inf"))], look)[0]))

    def raise_each(index: Value, total: list[Value]) -> list[Value]:
        value = e.exp(e.minus(e.load(at(index)), greatest))
        e.store(at(index), value)
        return [e.plus(total[0], value)]

    total = e.total(e.loop(given.blocks, [e.splat(0.0)], raise_each)[0])
    share = e.over(e.splat(1.0), e.spread(total))

    def divide(index: Value, _: list[Value]) -> list[Value]:
        e.store(at(index), e.times(e.load(at(index)), share))
        return []

    e.loop(given.blocks, [], divide)


@micro_kernel(Mix)
def bf16_mix(e: Emitter, given: Mix) -> None:
    """Of bfloat16 values."""
    _mix(e, given, e.load_first_bf16, 2)


@micro_kernel(Mix)
def f32_mix(e: Emitter, given: Mix) -> None:
    """Of float32 values."""
    _mix(e, given, e.load_first, 4)


def _mix(e: Emitter, given: Mix, load: Load, size: int) -> None:
    blocks = DIMS // LANES

    def write(heads: int) -> None:
        cells = [
            e.add(given.sums, e.mul(given.sums_stride, head), BYTES * block)
            for head in range(heads)
            for block in range(blocks)
        ]

        def slot(index: Value, sums: list[Value]) -> list[Value]:
            start = e.add(given.values, e.mul(given.slot_stride, index))
            parts = [
                load(e.add(start, size * LANES * block), e.sub(given.dims, LANES * block)) for block in range(blocks)
            ]
            weight = e.add(given.weights, e.mul(index, 4))
            weights = [e.load_number(e.add(weight, e.mul(given.weights_stride, head))) for head in range(heads)]
            products = [(weight, part) for weight in weights for part in parts]
            return [e.fma(*product, total) for total, product in zip(sums, products, strict=True)]

        for cell, total in zip(cells, e.loop(given.slots, [e.load(cell) for cell in cells], slot), strict=True):
            e.store(cell, total)

    e.switch(given.heads, {count: partial(write, count) for count in range(1, MOST_HEADS + 1)})


class Cleared(NamedTuple):
    sums: Value
    size: Value  # bytes, a multiple of 64


class Answer(NamedTuple):
    sums: Value  # float32
    out: Value
    dims: Value


@micro_kernel(Cleared)
def zero_sums(e: Emitter, given: Cleared) -> None:
    def clear(index: Value, _: list[Value]) -> list[Value]:
        e.store(e.add(given.sums, e.mul(index, BYTES)), e.splat(0.0))
        return []

    e.loop(e.steps(given.size, BYTES), [], clear)


@micro_kernel(Answer)
def narrow_sums(e: Emitter, given: Answer) -> None:
    """One head's answer, as bfloat16."""
    _copy_sums(e, given, 2, e.to_bf16)


@micro_kernel(Answer)
def wide_sums(e: Emitter, given: Answer) -> None:
    """One head's answer, as float32."""
    _copy_sums(e, given, 4, lambda value: value)


def _copy_sums(e: Emitter, given: Answer, size: int, convert: Callable[[Value], Value]) -> None:
    def copy(index: Value, _: list[Value]) -> list[Value]:
        done = e.mul(index, LANES)
        value = convert(e.load(e.add(given.sums, e.mul(done, 4))))
        e.store_first(e.add(given.out, e.mul(done, size)), value, e.sub(given.dims, done))
        return []

    e.loop(e.steps(given.dims, LANES), [], copy)
