"""What happens to each row of activations between the products: norms, and rotation into the pool.

Each is a micro-kernel for one row, or one head of it, and a loop over the rows that threads share.
"""

from typing import Any, NamedTuple

from numba import prange

from penstock_kernels.cpu.compiled import compiled
from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import LANES, Value
from penstock_kernels.cpu.numbers import Number, each, of_bf16, of_f32
from penstock_kernels.cpu.rounding import keep_heads


class Norm(NamedTuple):
    """One row: addresses, counts."""

    x: Value
    residual: Value  # 0: none; else x is added into it first
    weight: Value  # float32
    numbers: Value  # float32: eps, 1 / width
    out: Value
    width: Value


class Turn(NamedTuple):
    """One head: normalised if asked, turned by its token's angles, written elsewhere or in place."""

    x: Value
    normed: Value  # 1, or 0: the numbers as they are
    weight: Value  # float32, ones where the head is not normalised
    numbers: Value  # float32: eps, 1 / dims
    cos: Value
    sin: Value
    half: Value  # dimension i is paired with i + half; from 2 * half on they stay
    out: Value
    dims: Value


class Copy(NamedTuple):
    x: Value
    out: Value
    size: Value  # bytes, even


@micro_kernel(Copy)
def copy(e: Emitter, given: Copy) -> None:
    """Bytes from one place to another."""

    def move(at: Value, left: Value) -> None:
        e.store_first(e.add(given.out, e.mul(at, 2)), e.load_halves(e.add(given.x, e.mul(at, 2)), left), left)

    each(e, e.steps(given.size, 2), move)


@micro_kernel(Norm)
def bf16_norm(e: Emitter, row: Norm) -> None:
    _norm(e, row, of_bf16(e))


@micro_kernel(Norm)
def f32_norm(e: Emitter, row: Norm) -> None:
    _norm(e, row, of_f32(e))


@micro_kernel(Turn)
def bf16_turn(e: Emitter, head: Turn) -> None:
    _turn(e, head, of_bf16(e))


@micro_kernel(Turn)
def f32_turn(e: Emitter, head: Turn) -> None:
    _turn(e, head, of_f32(e))


def _norm(e: Emitter, row: Norm, number: Number) -> None:
    def add(at: Value, left: Value) -> None:
        place = e.add(row.residual, e.mul(at, number.size))
        total = e.plus(number.load(e.add(row.x, e.mul(at, number.size)), left), number.load(place, left))
        number.store(place, total, left)

    added = e.less(e.constant(0), row.residual)
    e.when(added, lambda: each(e, row.width, add))
    source = e.either(added, row.residual, row.x)
    scale = _norm_scale(e, source, row.width, row.numbers, number)

    def write(at: Value, left: Value) -> None:
        value = number.load(e.add(source, e.mul(at, number.size)), left)
        weight = e.load_first(e.add(row.weight, e.mul(at, 4)), left)
        number.store(e.add(row.out, e.mul(at, number.size)), e.times(e.times(value, scale), weight), left)

    each(e, row.width, write)


def _norm_scale(e: Emitter, source: Value, width: Value, numbers: Value, number: Number) -> Value:
    """1 / the root of the mean square, in every lane."""

    def squares(index: Value, total: list[Value]) -> list[Value]:
        at = e.mul(index, LANES)
        value = number.load(e.add(source, e.mul(at, number.size)), e.sub(width, at))
        return [e.fma(value, value, total[0])]

    total = e.total(e.loop(e.steps(width, LANES), [e.splat(0.0)], squares)[0])
    mean = e.times(e.spread(total), e.load_number(e.add(numbers, 4)))
    return e.over(e.splat(1.0), e.roots(e.plus(mean, e.load_number(numbers))))


def _turn(e: Emitter, head: Turn, number: Number) -> None:
    size = number.size
    normed = e.less(e.constant(0), head.normed)
    scale = e.either(normed, _norm_scale(e, head.x, head.dims, head.numbers, number), e.splat(1.0))

    def scaled(dim: Value, left: Value) -> Value:
        weight = e.times(e.load_first(e.add(head.weight, e.mul(dim, 4)), left), scale)
        return e.times(number.load(e.add(head.x, e.mul(dim, size)), left), weight)

    def turn(at: Value, left: Value) -> None:
        first, second = scaled(at, left), scaled(e.add(at, head.half), left)
        cos = number.load(e.add(head.cos, e.mul(at, size)), left)
        sin = number.load(e.add(head.sin, e.mul(at, size)), left)
        place = e.add(head.out, e.mul(at, size))
        number.store(place, e.minus(e.times(first, cos), e.times(second, sin)), left)
        turned = e.plus(e.times(second, cos), e.times(first, sin))
        number.store(e.add(place, e.mul(head.half, size)), turned, left)

    def keep(at: Value, left: Value) -> None:
        dim = e.add(at, head.half, head.half)
        number.store(e.add(head.out, e.mul(dim, size)), scaled(dim, left), left)

    each(e, head.half, turn)
    rest = e.sub(head.dims, e.mul(head.half, 2))
    e.when(e.less(e.constant(0), rest), lambda: each(e, rest, keep))


@compiled
def norm_rows(
    size: int, rows: int, width: int, x: int, x_stride: int, residual: int, weight: int, numbers: int, out: int
) -> None:
    """Addresses, and strides in bytes; `residual` (0: none) and `out` lie close."""
    stride = width * size
    for row in prange(rows):
        source, target = x + row * x_stride, out + row * stride
        place = residual + row * stride if residual else 0
        if size == 2:
            bf16_norm(source, place, weight, numbers, target, width)
        else:
            f32_norm(source, place, weight, numbers, target, width)


@compiled
def turn_and_store(
    size: int,
    heads: int,
    kv_heads: int,
    dims: int,
    half: int,
    qkv: int,
    normed: int,
    q_weight: int,
    k_weight: int,
    numbers: int,
    cos: int,
    sin: int,
    pool: int,
    kept: int,
    scales: int,
    positions: Any,
    slots: Any,
) -> None:
    """Addresses; where the tokens belong: see `workspace.Places`.

    Turn the query heads of each row of `qkv` in place, its key heads into their slot of the pool, and copy its value
    heads there. Where the pool keeps 8 bits, key heads are turned in place too, and both are rounded into it."""
    head_bytes, slot_numbers = dims * size, 2 * kv_heads * dims
    for token in prange(len(slots)):
        row = qkv + token * (heads + 2 * kv_heads) * head_bytes
        slot = pool + slots[token] * slot_numbers * (1 if kept else size)
        angle = positions[token] * half * size
        for head in range(heads + kv_heads):
            source = row + head * head_bytes
            target = source if head < heads or kept else slot + (head - heads) * head_bytes
            weight = q_weight if head < heads else k_weight
            if size == 2:
                bf16_turn(source, normed, weight, numbers, cos + angle, sin + angle, half, target, dims)
            else:
                f32_turn(source, normed, weight, numbers, cos + angle, sin + angle, half, target, dims)
        if kept:
            place = scales + 2 * slots[token] * 2 * kv_heads
            keep_heads(kept, size, 2 * kv_heads, dims, row + heads * head_bytes, slot, place)
        else:
            copy(row + (heads + kv_heads) * head_bytes, slot + kv_heads * head_bytes, kv_heads * head_bytes)
