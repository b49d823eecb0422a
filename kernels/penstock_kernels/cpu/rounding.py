"""Rounding to 8 bits: of activations before a product, and of K and V on their way into the pool.

Each is a micro-kernel for one row, one run of it, or one head, and a loop over the rows that threads share.
"""

from typing import Any, NamedTuple

from numba import prange

from penstock_kernels.cpu import e4m3
from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import I16, I64, INT32, LANES, Value
from penstock_kernels.cpu.numbers import Number, each, of_bf16, of_f32

KEPT = AS_IS, INT8, E4M3 = range(3)  # of K and V in the pool
LEAST_PEAK = 1e-10  # of a row that is rounded to e4m3: see `quant_rows`


class Round(NamedTuple):
    """One row, or one group of it, as 8-bit numbers."""

    x: Value
    width: Value
    out: Value
    scale: Value  # float32, written: what one step is worth
    minus_sum: Value  # int32, written where numbers are signed: minus their sum


class ToFloat8(NamedTuple):
    """One row, or one run of it, to the nearest e4m3, written as bfloat16."""

    x: Value
    width: Value
    filled: Value  # numbers written: zeros from `width` on
    out: Value
    scale: Value  # float32, written


class Keep(NamedTuple):
    """One head of K or V, as the pool keeps it: see `penstock_kernels.kv`."""

    x: Value
    dims: Value
    out: Value  # bytes
    scale: Value  # float16, written


class Taken(NamedTuple):
    """A row's numbers in another order."""

    x: Value
    order: Value  # int64, the place of each
    width: Value
    out: Value


@micro_kernel(Round)
def bf16_unsigned(e: Emitter, row: Round) -> None:
    """From 1 to 255, 128 above their value."""
    _round_unsigned(e, row, of_bf16(e))


@micro_kernel(Round)
def f32_unsigned(e: Emitter, row: Round) -> None:
    """From 1 to 255, 128 above their value."""
    _round_unsigned(e, row, of_f32(e))


@micro_kernel(Round)
def bf16_signed(e: Emitter, group: Round) -> None:
    """From -127 to 127."""
    _round_signed(e, group, of_bf16(e))


@micro_kernel(Round)
def f32_signed(e: Emitter, group: Round) -> None:
    """From -127 to 127."""
    _round_signed(e, group, of_f32(e))


@micro_kernel(ToFloat8)
def bf16_to_e4m3(e: Emitter, run: ToFloat8) -> None:
    _round_to_e4m3(e, run, of_bf16(e))


@micro_kernel(ToFloat8)
def f32_to_e4m3(e: Emitter, run: ToFloat8) -> None:
    _round_to_e4m3(e, run, of_f32(e))


@micro_kernel(Keep)
def bf16_keep_int8(e: Emitter, head: Keep) -> None:
    _keep_int8(e, head, of_bf16(e))


@micro_kernel(Keep)
def f32_keep_int8(e: Emitter, head: Keep) -> None:
    _keep_int8(e, head, of_f32(e))


@micro_kernel(Keep)
def bf16_keep_e4m3(e: Emitter, head: Keep) -> None:
    _keep_e4m3(e, head, of_bf16(e))


@micro_kernel(Keep)
def f32_keep_e4m3(e: Emitter, head: Keep) -> None:
    _keep_e4m3(e, head, of_f32(e))


@micro_kernel(Taken)
def take_halves(e: Emitter, row: Taken) -> None:
    """Of 16 bits each."""
    _take(e, row, I16, 2)


@micro_kernel(Taken)
def take_words(e: Emitter, row: Taken) -> None:
    """Of 32 bits each."""
    _take(e, row, INT32, 4)


def _round_unsigned(e: Emitter, row: Round, number: Number) -> None:
    steps = _steps_per_unit(e, row, number)

    def write(at: Value, left: Value) -> None:
        value = number.load(e.add(row.x, e.mul(at, number.size)), left)
        e.store_first(e.add(row.out, at), e.to_bytes(e.plus(e.round(e.times(value, steps)), e.splat(128.0))), left)

    each(e, row.width, write)


def _round_signed(e: Emitter, group: Round, number: Number) -> None:
    steps = _steps_per_unit(e, group, number)

    def write(index: Value, total: list[Value]) -> list[Value]:
        at = e.mul(index, LANES)
        left = e.sub(group.width, at)
        value = e.round(e.times(number.load(e.add(group.x, e.mul(at, number.size)), left), steps))
        e.store_first(e.add(group.out, at), e.to_bytes(value), left)
        return [e.plus(total[0], value)]

    total = e.loop(e.steps(group.width, LANES), [e.splat(0.0)], write)[0]
    e.store(group.minus_sum, e.to_integer(e.total(e.negated(total))))


def _steps_per_unit(e: Emitter, row: Round, number: Number) -> Value:
    """127 over the greatest magnitude, in every lane; its inverse becomes the row's scale: NaN where the row holds NaN
    or infinity, so that whatever it is multiplied with is seen to mean nothing."""

    highest, unsound = _peak(e, row.x, row.width, number)
    e.store(row.scale, e.first(e.plus(e.times(highest, e.splat(1 / 127)), unsound)))
    return e.over(e.splat(127.0), e.greater(highest, e.splat(1e-30)))


def _peak(e: Emitter, x: Value, width: Value, number: Number) -> tuple[Value, Value]:
    """The greatest magnitude, in every lane; and 0, or NaN where one of the numbers is not finite."""

    def look(index: Value, found: list[Value]) -> list[Value]:
        at = e.mul(index, LANES)
        value = number.load(e.add(x, e.mul(at, number.size)), e.sub(width, at))
        return [e.greater(found[0], e.magnitude(value)), e.fma(value, e.splat(0.0), found[1])]

    greatest, check = e.loop(e.steps(width, LANES), [e.splat(0.0), e.splat(0.0)], look)
    return e.spread(e.greatest(greatest)), e.spread(e.total(check))


def _clipped(e: Emitter, value: Value, limit: float) -> Value:
    return e.lesser(e.greater(value, e.splat(-limit)), e.splat(limit))


def _round_to_e4m3(e: Emitter, run: ToFloat8, number: Number) -> None:
    highest, unsound = _peak(e, run.x, run.width, number)
    scale = e.over(e.greater(highest, e.splat(LEAST_PEAK)), e.splat(e4m3.LARGEST))
    e.store(run.scale, e.first(e.plus(scale, unsound)))

    def write(at: Value, left: Value) -> None:
        value = e.over(number.load(e.add(run.x, e.mul(at, number.size)), e.sub(run.width, at)), scale)
        rounded = e4m3.round_to(e, _clipped(e, value, e4m3.LARGEST))
        e.store_first(e.add(run.out, e.mul(at, 2)), e.to_bf16(rounded), left)

    each(e, run.filled, write)


def _keep_int8(e: Emitter, head: Keep, number: Number) -> None:
    scale = _keep_scale(e, head, number, 127.0)

    def write(at: Value, left: Value) -> None:
        value = e.over(number.load(e.add(head.x, e.mul(at, number.size)), left), scale)
        e.store_first(e.add(head.out, at), e.to_bytes(e.round(_clipped(e, value, 127.0))), left)

    each(e, head.dims, write)


def _keep_e4m3(e: Emitter, head: Keep, number: Number) -> None:
    scale = _keep_scale(e, head, number, e4m3.LARGEST)

    def write(at: Value, left: Value) -> None:
        value = e.over(number.load(e.add(head.x, e.mul(at, number.size)), left), scale)
        rounded = e4m3.round_to(e, _clipped(e, value, e4m3.LARGEST))
        e.store_first(e.add(head.out, at), e.octets(e4m3.code_of(e, rounded)), left)

    each(e, head.dims, write)


def _keep_scale(e: Emitter, head: Keep, number: Number, largest: float) -> Value:
    """Write a head's scale; what to divide by: the scale, or infinity where it is 0, so that all becomes zeros."""
    highest, unsound = _peak(e, head.x, head.dims, number)
    stored = e.to_f16(e.plus(e.over(highest, e.splat(largest)), unsound))
    scale = e.from_f16(stored)
    unsound = e.minus(scale, scale)  # NaN where 16 bits have no number so large
    stored = e.to_f16(e.plus(scale, unsound))
    e.store(head.scale, e.first(stored), align=2)
    return e.choose(e.is_below(e.splat(0.0), scale), scale, e.splat(float("inf")))


def _take(e: Emitter, row: Taken, kind: Any, size: int) -> None:
    def move(index: Value, _: list[Value]) -> list[Value]:
        place = e.load(e.add(row.order, e.mul(index, 8)), I64, align=8)
        number = e.load(e.add(row.x, e.mul(place, size)), kind, align=size)
        e.store(e.add(row.out, e.mul(index, size)), number, align=size)
        return []

    e.loop(row.width, [], move)


@compiled
def round_rows(
    size: int, rows: int, width: int, group: int, x: int, x_stride: int, out: int, scales: int, minus_sums: int
) -> None:
    """Addresses, and strides in bytes. Whole rows as unsigned numbers where `group` is 0, else signed groups of it."""
    groups = width // group if group else 1
    for task in prange(rows * groups):
        row, part = task // groups, task % groups
        source, target = x + row * x_stride + part * group * size, out + row * width + part * group
        scale, minus_sum = scales + 4 * task, minus_sums + 4 * task
        if group and size == 2:
            bf16_signed(source, group, target, scale, minus_sum)
        elif group:
            f32_signed(source, group, target, scale, minus_sum)
        elif size == 2:
            bf16_unsigned(source, width, target, scale, 0)
        else:
            f32_unsigned(source, width, target, scale, 0)


@compiled
def round_rows_to_e4m3(
    size: int, rows: int, width: int, run: int, x: int, x_stride: int, out: int, scales: int
) -> None:
    """Addresses, and strides in bytes. `out` holds bfloat16, `scales` float32, by runs of `run` columns, of which the
    last may be narrower: zeros fill it up."""
    runs = (width + run - 1) // run
    for task in prange(rows * runs):
        row, part = task // runs, task % runs
        source, target = x + row * x_stride + part * run * size, out + 2 * task * run
        there = min(run, width - part * run)
        if size == 2:
            bf16_to_e4m3(source, there, run, target, scales + 4 * task)
        else:
            f32_to_e4m3(source, there, run, target, scales + 4 * task)


@compiled
def take_columns(size: int, rows: int, width: int, x: int, x_stride: int, order: int, out: int) -> None:
    """Addresses, and strides in bytes: column `order[i]` of each row becomes column i."""
    for row in prange(rows):
        if size == 2:
            take_halves(x + row * x_stride, order, width, out + row * width * size)
        else:
            take_words(x + row * x_stride, order, width, out + row * width * size)


@part
def keep_heads(kept: int, size: int, heads: int, dims: int, x: int, out: int, scales: int) -> None:
    """Round `heads` heads that lie side by side, each with its scale; `kept` is of `KEPT`."""
    for head in range(heads):
        source, target, scale = x + head * dims * size, out + head * dims, scales + 2 * head
        if kept == INT8:
            if size == 2:
                bf16_keep_int8(source, dims, target, scale)
            else:
                f32_keep_int8(source, dims, target, scale)
        elif size == 2:
            bf16_keep_e4m3(source, dims, target, scale)
        else:
            f32_keep_e4m3(source, dims, target, scale)
