"""The inner loops of the linear layers: a few rows of activations against one panel of packed weights.

A panel is 64 output columns, as four blocks of sixteen lanes; its weights lie in the order in which they are read, four
vectors for each step along the inner dimension. A step is one 32-bit word of a row of activations: two bfloat16, one
float32 or four 8-bit numbers.

    panel:  step 0 [ block 0 | block 1 | block 2 | block 3 ]  step 1 [ ... ] ...        64 bytes a block

Each output is one sum over the steps in their order, whatever the number of rows: a row's numbers do not depend on who
else is in the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, LANES, Value

BLOCKS = 4
PANEL = BLOCKS * LANES  # columns
MOST_ROWS = 6  # 24 sums, 4 vectors of weights and one of activations: what 32 registers hold
AHEAD = 1024  # bytes; one row waits for memory alone, and 774 MB of bfloat16 then took 3% less (2-core AMD EPYC)
WORD = 4  # bytes of a row of activations that one step takes

# What becomes of a panel's sums: written as they are, or the first half, through a gate, times the second.
AS_FLOAT, AS_BF16, SILU_FLOAT, SILU_BF16, GELU_FLOAT, GELU_BF16 = range(6)

GELU_SCALE, GELU_CUBE = 0.7978845608028654, 0.044715  # sqrt(2 / pi), and the constant of gelu's tanh form

Grid = list[list[Value]]  # [rows][blocks]
Multiply = Callable[[Emitter, Value, Value, Value], Value]  # total, weights, word of activations: the new total


class Tile(Protocol):
    """What all tiles read and write, whatever the weights: addresses, strides in bytes, counts."""

    @property
    def x(self) -> Value: ...
    @property
    def x_stride(self) -> Value: ...
    @property
    def weights(self) -> Value: ...
    @property
    def steps(self) -> Value: ...
    @property
    def bias(self) -> Value: ...
    @property
    def out(self) -> Value: ...
    @property
    def out_stride(self) -> Value: ...
    @property
    def columns(self) -> Value: ...
    @property
    def finish(self) -> Value: ...


class Panel(NamedTuple):
    """What a tile reads and writes: addresses, strides in bytes, counts."""

    rows: Value
    x: Value
    x_stride: Value
    weights: Value
    steps: Value
    bias: Value  # float32 [64]
    out: Value
    out_stride: Value
    columns: Value  # outputs of each row that lie within the layer
    finish: Value  # AS_FLOAT ...


class Int8Panel(NamedTuple):
    """A Panel of signed weights, whose activations are unsigned: 128 above their value."""

    rows: Value
    x: Value
    x_stride: Value
    weights: Value
    steps: Value
    bias: Value
    out: Value
    out_stride: Value
    columns: Value
    finish: Value
    x_scales: Value  # float32 [rows]
    scales: Value  # float32 [64]
    corrections: Value  # int32 [64]: 128 times the sum of each column's weights


@micro_kernel(Panel)
def bf16_tile(e: Emitter, panel: Panel) -> None:
    """Rows of bfloat16."""
    _float_tile(e, panel, lambda e, total, weights, word: e.dot_bf16(total, e.pairs(weights), e.pairs(word)))


@micro_kernel(Panel)
def f32_tile(e: Emitter, panel: Panel) -> None:
    """Rows of float32."""
    _float_tile(e, panel, lambda e, total, weights, word: e.fma(e.as_float(weights), e.as_float(word), total))


@micro_kernel(Int8Panel)
def int8_tile(e: Emitter, panel: Int8Panel) -> None:
    """Rows of bytes: sums are exact until they are scaled."""

    def write(rows: int) -> None:
        sums = _sums(e, rows, e.splat_int(0), panel, lambda e, total, weights, word: e.dot_u8s8(total, word, weights))
        row_scales = [e.load_number(e.add(panel.x_scales, 4 * row)) for row in range(rows)]
        for block in range(BLOCKS):
            scale = e.load(e.add(panel.scales, BYTES * block))
            correction = e.load_integers(e.add(panel.corrections, BYTES * block))
            for row, row_scale in enumerate(row_scales):
                exact = e.to_float(e.minus(sums[row][block], correction))
                sums[row][block] = e.times(exact, e.times(scale, row_scale))
        finish(e, sums, panel)

    for_each_count(e, panel.rows, MOST_ROWS, write)


def _float_tile(e: Emitter, panel: Panel, multiply: Multiply) -> None:
    def write(rows: int) -> None:
        finish(e, _sums(e, rows, e.splat(0.0), panel, multiply), panel)

    for_each_count(e, panel.rows, MOST_ROWS, write)


def for_each_count(e: Emitter, rows: Value, most: int, write: Callable[[int], None]) -> None:
    """Code for every number of rows, and the choice among them."""
    e.switch(rows, {count: partial(write, count) for count in range(1, most + 1)})


def _sums(e: Emitter, rows: int, zero: Value, panel: Tile, multiply: Multiply) -> Grid:
    def step(index: Value, totals: list[Value]) -> list[Value]:
        first = e.add(panel.weights, e.mul(index, BLOCKS * BYTES))
        weights = [e.load_integers(e.add(first, BYTES * block), align=BYTES) for block in range(BLOCKS)]
        if rows == 1:
            prefetch(e, e.add(first, AHEAD))
        words = [word(e, panel, row, index) for row in range(rows)]
        products = [(block, word) for word in words for block in weights]
        return [multiply(e, total, *product) for total, product in zip(totals, products, strict=True)]

    return grid(e.loop(panel.steps, [zero] * (rows * BLOCKS), step), rows)


def prefetch(e: Emitter, first: Value) -> None:
    for block in range(BLOCKS):
        e.prefetch(e.add(first, BYTES * block))


def word(e: Emitter, panel: Tile, row: int, index: Value) -> Value:
    return e.load_word(e.add(panel.x, e.mul(panel.x_stride, row), e.mul(index, WORD)))


def grid(flat: list[Value], rows: int) -> Grid:
    return [flat[row * BLOCKS : (row + 1) * BLOCKS] for row in range(rows)]


def finish(e: Emitter, sums: Grid, panel: Tile) -> None:
    """Add the bias and write the outputs as `panel.finish` says."""
    biases = [e.load(e.add(panel.bias, BYTES * block)) for block in range(BLOCKS)]
    biased = [[e.plus(each, bias) for each, bias in zip(row, biases, strict=True)] for row in sums]

    def plain(narrow: bool) -> None:
        _write(e, biased, panel, narrow)

    def gated(gate: Callable[[Emitter, Value], Value], narrow: bool) -> None:
        half = BLOCKS // 2
        _write(e, [[e.times(gate(e, row[at]), row[half + at]) for at in range(half)] for row in biased], panel, narrow)

    cases = {
        AS_FLOAT: partial(plain, False),
        AS_BF16: partial(plain, True),
        SILU_FLOAT: partial(gated, _silu, False),
        SILU_BF16: partial(gated, _silu, True),
        GELU_FLOAT: partial(gated, _gelu, False),
        GELU_BF16: partial(gated, _gelu, True),
    }
    e.switch(panel.finish, cases)


def _write(e: Emitter, grid: Grid, panel: Tile, narrow: bool) -> None:
    block_bytes = LANES * (2 if narrow else 4)
    for row, blocks in enumerate(grid):
        start = e.add(panel.out, e.mul(panel.out_stride, row))
        for at, block in enumerate(blocks):
            value = e.to_bf16(block) if narrow else block
            e.store_first(e.add(start, block_bytes * at), value, e.sub(panel.columns, LANES * at))


def _silu(e: Emitter, x: Value) -> Value:
    return e.times(x, e.sigmoid(x))


def _gelu(e: Emitter, x: Value) -> Value:
    """In its tanh form: 0.5 * (1 + tanh(u)) is sigmoid(2u)."""
    inner = e.fma(e.times(e.times(x, x), x), e.splat(GELU_CUBE), x)
    return e.times(x, e.sigmoid(e.times(inner, e.splat(2 * GELU_SCALE))))
