"""Rows of numbers of one kind, sixteen at a time."""

from collections.abc import Callable
from typing import NamedTuple

from penstock_kernels.cpu.emit import Emitter
from penstock_kernels.cpu.kinds import LANES, Value


class Number(NamedTuple):
    """How numbers of one kind are read and written: (address, how many lanes lie within)."""

    size: int
    load: Callable[[Value, Value], Value]
    store: Callable[[Value, Value, Value], None]


def of_bf16(e: Emitter) -> Number:
    return Number(2, e.load_first_bf16, lambda at, value, lanes: e.store_first(at, e.to_bf16(value), lanes))


def of_f32(e: Emitter) -> Number:
    return Number(4, e.load_first, e.store_first)


def each(e: Emitter, count: Value, body: Callable[[Value, Value], None]) -> None:
    """`body(at, left)` for each block of sixteen of `count` numbers, of which `left` remain."""

    def step(index: Value, _: list[Value]) -> list[Value]:
        at = e.mul(index, LANES)
        body(at, e.sub(count, at))
        return []

    e.loop(e.steps(count, LANES), [], step)
