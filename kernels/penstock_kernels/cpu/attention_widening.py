"""K and V of 8 bits on their way to attention: sixteen slots of one head at a time.

Their codes are whole numbers up to 127, or e4m3: bfloat16 holds both exactly. Their scales, one for a slot, are applied
where a slot is one lane: to the scores of keys, and to the weights that values get.
"""

from collections.abc import Callable
from typing import NamedTuple

from penstock_kernels.cpu import e4m3
from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, CODES, HALF, HALVES, LANES, OCTETS, Value


class Widened(NamedTuple):
    """Sixteen slots of codes, and where they are put side by side."""

    codes: Value  # of the first slot
    slot_stride: Value  # bytes
    dims: Value
    out: Value


class Scales(NamedTuple):
    source: Value  # float16, of the first slot
    stride: Value  # bytes
    out: Value  # float32 [16]


class Weighed(NamedTuple):
    """Weights of sixteen slots, for the heads of a group."""

    weights: Value  # float32 [16], of the first head; overwritten
    stride: Value  # from head to head
    heads: Value
    scales: Value  # float32 [16]


class Ones(NamedTuple):
    out: Value  # float32 [16]


HALVES_OF_64 = range(2 * LANES), range(2 * LANES, BYTES)
Write = Callable[[Value, Value, Value], None]  # address of codes, address of numbers, how many lanes lie within


@micro_kernel(Widened)
def bf16_of_int8(e: Emitter, given: Widened) -> None:
    def write(source: Value, place: Value, left: Value) -> None:
        e.store_first(place, e.to_bf16(_int8(e, source, left)), left)

    _widen(e, given, LANES, 2, write)


@micro_kernel(Widened)
def f32_of_int8(e: Emitter, given: Widened) -> None:
    def write(source: Value, place: Value, left: Value) -> None:
        e.store_first(place, _int8(e, source, left), left)

    _widen(e, given, LANES, 4, write)


@micro_kernel(Widened)
def bf16_of_e4m3(e: Emitter, given: Widened) -> None:
    def write(source: Value, place: Value, left: Value) -> None:
        for at, part in enumerate(e4m3.decode(e, e.load_first(source, left, CODES), *HALVES_OF_64)):
            first = 2 * LANES * at
            e.store_first(e.add(place, 2 * first), part, e.sub(left, first))

    _widen(e, given, BYTES, 2, write)


@micro_kernel(Widened)
def f32_of_e4m3(e: Emitter, given: Widened) -> None:
    def write(source: Value, place: Value, left: Value) -> None:
        for at, half in enumerate(e4m3.decode(e, e.load_first(source, left, CODES), *HALVES_OF_64)):
            for part, lanes in enumerate((range(LANES), range(LANES, 2 * LANES))):
                first = LANES * (2 * at + part)
                numbers = e.as_kind(e.merged(half, half, lanes), HALVES)
                e.store_first(e.add(place, 4 * first), e.widen(numbers), e.sub(left, first))

    _widen(e, given, BYTES, 4, write)


@micro_kernel(Scales)
def widen_scales(e: Emitter, given: Scales) -> None:
    """Sixteen scales from as many slots, side by side."""
    for slot in range(LANES):
        half = e.load(e.add(given.source, e.mul(given.stride, slot)), HALF, align=2)
        e.store(e.add(given.out, 4 * slot), e.longer(half))


@micro_kernel(Weighed)
def scale_weights(e: Emitter, given: Weighed) -> None:
    """Multiply the weights of each head with the slots' scales."""
    scales = e.load(given.scales)

    def head(index: Value, _: list[Value]) -> list[Value]:
        place = e.add(given.weights, e.mul(given.stride, index))
        e.store(place, e.times(e.load(place), scales))
        return []

    e.loop(given.heads, [], head)


@micro_kernel(Ones)
def ones(e: Emitter, given: Ones) -> None:
    """The scales of what has none."""
    e.store(given.out, e.splat(1.0))


def _int8(e: Emitter, source: Value, left: Value) -> Value:
    return e.to_float(e.signed(e.load_first(source, left, OCTETS)))


def _widen(e: Emitter, given: Widened, lanes: int, size: int, write: Write) -> None:
    """`write` for each run of `lanes` dimensions of each slot."""

    def slot(index: Value, _: list[Value]) -> list[Value]:
        source, out = e.add(given.codes, e.mul(given.slot_stride, index)), e.mul(e.mul(given.dims, index), size)

        def step(at: Value, _: list[Value]) -> list[Value]:
            done = e.mul(at, lanes)
            write(e.add(source, done), e.add(given.out, out, e.mul(done, size)), e.sub(given.dims, done))
            return []

        e.loop(e.steps(given.dims, lanes), [], step)
        return []

    e.loop(e.constant(LANES), [], slot)
