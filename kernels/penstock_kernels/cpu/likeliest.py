"""How likely given tokens are, and the likeliest in their places, as `penstock_kernels.logprobs.likeliest` defines it.

A row is read twice, while it lies in a core's cache. The first time the greatest logit of every 64th column is kept:
the `tops`-th of those 64 is a bound that so many logits reach, and few more. The second time the exponentials are
summed, and what reaches the bound is set aside, some two dozen numbers of a vocabulary of any size. Equal logits come
in the order of their ids.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, I64, LANES, Value

PEAKS = 64  # kept of a row: of four vectors, each lane's greatest
STRIDE = 1024  # columns between two looks at how much was set aside
ROOM = 2 * STRIDE  # numbers that may be set aside: a stretch, behind what it found there
NOTHING = float("-inf")


class Peaks(NamedTuple):
    """One row: addresses, counts."""

    x: Value
    width: Value
    out: Value  # float32 [PEAKS]


class Stretch(NamedTuple):
    """A stretch of a row: what it adds to the sum, and what is set aside of it."""

    x: Value
    width: Value
    first: Value  # the id of its first column
    numbers: Value  # float32: the row's greatest logit, the bound; written behind them: the sum of exp(x - greatest)
    values: Value  # float32, written from `held` on
    ids: Value  # int32, likewise
    held: Value  # int64, how many are set aside


@micro_kernel(Peaks)
def find_peaks(e: Emitter, row: Peaks) -> None:
    nothing = e.splat(NOTHING)

    def look(index: Value, peaks: list[Value]) -> list[Value]:
        places = [e.add(e.mul(index, PEAKS), LANES * at) for at in range(len(peaks))]
        vectors = [e.load_first(e.add(row.x, e.mul(at, 4)), e.sub(row.width, at), rest=nothing) for at in places]
        return [e.greater(peak, vector) for peak, vector in zip(peaks, vectors, strict=True)]

    peaks = e.loop(e.steps(row.width, PEAKS), [nothing] * (PEAKS // LANES), look)
    for at, peak in enumerate(peaks):
        e.store(e.add(row.out, at * BYTES), peak)


@micro_kernel(Stretch)
def sum_and_set_aside(e: Emitter, given: Stretch) -> None:
    greatest, bound = e.load_number(given.numbers), e.load_number(e.add(given.numbers, 4))

    def look(index: Value, total: list[Value]) -> list[Value]:
        at = e.mul(index, LANES)
        left = e.sub(given.width, at)
        value = e.load_first(e.add(given.x, e.mul(at, 4)), left, rest=e.splat(NOTHING))
        reached = e.both(e.at_least(value, bound), e.below(left))
        found = e.count(reached)

        def set_aside() -> None:
            place = e.load(given.held, I64, align=8)
            e.store(e.add(given.values, e.mul(place, 4)), e.gathered(value, reached))
            e.store(e.add(given.ids, e.mul(place, 4)), e.gathered(e.numbered(e.add(given.first, at)), reached))
            e.store(given.held, e.add(place, found), align=8)

        e.when(e.less(e.constant(0), found), set_aside)
        return [e.plus(total[0], e.exp(e.minus(value, greatest)))]

    total = e.loop(e.steps(given.width, LANES), [e.splat(0.0)], look)[0]
    e.store(e.add(given.numbers, 8), e.total(total))


@part
def keep_greatest(values: Any, ids: Any, held: int, most: int) -> int:
    """Bring the `most` greatest of `held` numbers to the front, in order, equal ones as they come; how many."""
    kept = 0
    for at in range(held):
        value, number = values[at], ids[at]
        if kept < most:
            kept += 1
        elif not value > values[most - 1]:
            continue
        place = kept - 1
        while place > 0 and values[place - 1] < value:
            values[place], ids[place] = values[place - 1], ids[place - 1]
            place -= 1
        values[place], ids[place] = value, number
    return kept


@part
def find_in_row(x: int, width: int, tops: int, values: Any, ids: Any) -> float:
    """The logarithm of the sum of exponentials; the `tops` greatest are the first of `values` and `ids` [ROOM + LANES]
    then, as far as there are any."""
    numbers, held = np.empty(3, np.float32), np.zeros(1, np.int64)
    find_peaks(x, width, values.ctypes.data)
    keep_greatest(values, ids, PEAKS, min(max(tops, 1), PEAKS))
    numbers[0] = values[0]
    numbers[1] = np.nan if tops == 0 else NOTHING if tops > PEAKS else values[tops - 1]  # nothing reaches a NaN
    total = 0.0
    for first in range(0, width, STRIDE):
        there = min(STRIDE, width - first)
        sum_and_set_aside(
            x + 4 * first,
            there,
            first,
            numbers.ctypes.data,
            values.ctypes.data,
            ids.ctypes.data,
            held.ctypes.data,
        )
        total += numbers[2]
        if held[0] > ROOM - STRIDE:
            held[0] = keep_greatest(values, ids, held[0], tops)
            numbers[1] = np.nextafter(values[tops - 1], np.float32(np.inf))  # of equal ones the first are kept
    for at in range(keep_greatest(values, ids, held[0], tops), tops):
        values[at], ids[at] = np.nan, 0  # fewer are numbers
    return numbers[0] + math.log(total)


@compiled
def find_likeliest(logits: Any, targets: Any, tops: int, bits: Any, numbers: Any) -> None:
    """`logits` [rows, width]; `bits` and `numbers` are one memory, [rows * (1 + 2 * tops)] as int32 and as float32."""
    rows, width = logits.shape
    for row in prange(rows):
        values, ids = np.empty(ROOM + LANES, np.float32), np.empty(ROOM + LANES, np.int32)
        total = find_in_row(logits.ctypes.data + 4 * row * width, width, tops, values, ids)
        if not np.isfinite(total):
            total = np.nan
        first = row * (1 + 2 * tops)
        numbers[first] = logits[row, targets[row]] - total
        for at in range(tops):
            numbers[first + 1 + at] = values[at] - total
            bits[first + 1 + tops + at] = ids[at]


def likeliest(logits: Tensor, targets: Tensor, tops: int) -> Tensor:
    """See `penstock_kernels.logprobs.likeliest`."""
    tops = min(tops, logits.shape[-1])
    packed = torch.empty(len(targets), 1 + 2 * tops, dtype=torch.int32)
    bits = packed.view(-1).numpy()
    find_likeliest(logits.contiguous().numpy(), targets.numpy(), tops, bits, bits.view(np.float32))
    return packed
