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
from typing import NamedTuple

from penstock_kernels.cpu.emit import BYTES, LANES, Emitter, Value, micro_kernel

BLOCKS = 4
PANEL = BLOCKS * LANES  # columns
MOST_ROWS = 6  # 24 sums, 4 vectors of weights and one of activations: what 32 registers hold
MOST_ROWS_INT4 = 4  # with as many sums of whole groups, which are touched once a group
AHEAD = 1024  # bytes; one row waits for memory alone, and 774 MB of bfloat16 then took 3% less (2-core AMD EPYC)
WORD = 4  # bytes of a row of activations that one step takes

# What becomes of a panel's sums: written as they are, or the first half, through a gate, times the second.
AS_FLOAT, AS_BF16, SILU_FLOAT, SILU_BF16, GELU_FLOAT, GELU_BF16 = range(6)

GELU_SCALE, GELU_CUBE = 0.7978845608028654, 0.044715  # sqrt(2 / pi), and the constant of gelu's tanh form

Grid = list[list[Value]]  # [rows][blocks]
Multiply = Callable[[Emitter, Value, Value, Value], Value]  # total, weights, word of activations: the new total


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


class Int4Panel(NamedTuple):
    """A Panel of groups of nibbles, 8 above their value: the low ones of a vector belong to one word, the high to the
    next. `steps` counts the vectors of a block in one group."""

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
    groups: Value
    scales: Value  # float16 [groups, 64]
    x_scales: Value  # float32 [rows, groups]
    corrections: Value  # int32 [rows, groups]: 8 times the sum of the group's activations


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
        _finish(e, sums, panel)

    _for_each_count(e, panel.rows, MOST_ROWS, write)


@micro_kernel(Int4Panel)
def int4_tile(e: Emitter, panel: Int4Panel) -> None:
    """Rows of bytes against nibbles: exact within a group, whose sum is then scaled and added to the others."""

    def write(rows: int) -> None:
        def group(index: Value, totals: list[Value]) -> list[Value]:
            exact = _nibble_sums(e, rows, panel, index)
            scales = e.add(panel.scales, e.mul(index, 2 * PANEL))
            return _add_group(e, totals, exact, scales, _group_cells(e, rows, panel, index))

        flat = e.loop(panel.groups, [e.splat(0.0)] * (rows * BLOCKS), group)
        _finish(e, _grid(flat, rows), panel)

    _for_each_count(e, panel.rows, MOST_ROWS_INT4, write)


def _float_tile(e: Emitter, panel: Panel, multiply: Multiply) -> None:
    def write(rows: int) -> None:
        _finish(e, _sums(e, rows, e.splat(0.0), panel, multiply), panel)

    _for_each_count(e, panel.rows, MOST_ROWS, write)


def _for_each_count(e: Emitter, rows: Value, most: int, write: Callable[[int], None]) -> None:
    """Code for every number of rows, and the choice among them."""
    e.switch(rows, {count: partial(write, count) for count in range(1, most + 1)})


def _sums(e: Emitter, rows: int, zero: Value, panel: Panel | Int8Panel, multiply: Multiply) -> Grid:
    def step(index: Value, totals: list[Value]) -> list[Value]:
        first = e.add(panel.weights, e.mul(index, BLOCKS * BYTES))
        weights = [e.load_integers(e.add(first, BYTES * block), align=BYTES) for block in range(BLOCKS)]
        if rows == 1:
            _prefetch(e, e.add(first, AHEAD))
        words = [_word(e, panel, row, index) for row in range(rows)]
        products = [(block, word) for word in words for block in weights]
        return [multiply(e, total, *product) for total, product in zip(totals, products, strict=True)]

    return _grid(e.loop(panel.steps, [zero] * (rows * BLOCKS), step), rows)


def _prefetch(e: Emitter, first: Value) -> None:
    for block in range(BLOCKS):
        e.prefetch(e.add(first, BYTES * block))


def _word(e: Emitter, panel: Panel | Int8Panel | Int4Panel, row: int, index: Value) -> Value:
    return e.load_word(e.add(panel.x, e.mul(panel.x_stride, row), e.mul(index, WORD)))


def _nibble_sums(e: Emitter, rows: int, panel: Int4Panel, group: Value) -> list[Value]:
    """The exact sums [rows * blocks] of one group, as if nibbles had no offset."""
    start = e.mul(group, panel.steps)

    def step(index: Value, totals: list[Value]) -> list[Value]:
        at = e.add(start, index)
        first = e.add(panel.weights, e.mul(at, BLOCKS * BYTES))
        blocks = [e.load_integers(e.add(first, BYTES * block), align=BYTES) for block in range(BLOCKS)]
        low, high = [e.low_nibbles(each) for each in blocks], [e.high_nibbles(each) for each in blocks]
        words = [
            (_word(e, panel, row, e.mul(at, 2)), _word(e, panel, row, e.add(e.mul(at, 2), 1))) for row in range(rows)
        ]
        cells = [(block, word) for word in words for block in range(BLOCKS)]
        halfway = [e.dot_u8s8(t, low[b], even) for t, (b, (even, _)) in zip(totals, cells, strict=True)]
        return [e.dot_u8s8(t, high[b], odd) for t, (b, (_, odd)) in zip(halfway, cells, strict=True)]

    return e.loop(panel.steps, [e.splat_int(0)] * (rows * BLOCKS), step)


def _group_cells(e: Emitter, rows: int, panel: Int4Panel, group: Value) -> list[tuple[Value, Value]]:
    """Each row's (scale, correction) for a group."""
    at = [e.mul(e.add(e.mul(panel.groups, row), group), 4) for row in range(rows)]
    return [(e.load_number(e.add(panel.x_scales, each)), e.load_word(e.add(panel.corrections, each))) for each in at]


def _add_group(
    e: Emitter, totals: list[Value], exact: list[Value], scales: Value, rows: list[tuple[Value, Value]]
) -> list[Value]:
    columns = [e.load_f16(e.add(scales, 2 * LANES * block)) for block in range(BLOCKS)]
    cells = [(column, *row) for row in rows for column in columns]
    return [
        e.fma(e.to_float(e.minus(found, correction)), e.times(column, row_scale), total)
        for total, found, (column, row_scale, correction) in zip(totals, exact, cells, strict=True)
    ]


def _grid(flat: list[Value], rows: int) -> Grid:
    return [flat[row * BLOCKS : (row + 1) * BLOCKS] for row in range(rows)]


def _finish(e: Emitter, sums: Grid, panel: Panel | Int8Panel | Int4Panel) -> None:
    """Add the bias and write the outputs as `panel.finish` says."""
    biases = [e.load(e.add(panel.bias, BYTES * block)) for block in range(BLOCKS)]
    grid = [[e.plus(each, bias) for each, bias in zip(row, biases, strict=True)] for row in sums]

    def plain(narrow: bool) -> None:
        _write(e, grid, panel, narrow)

    def gated(gate: Callable[[Emitter, Value], Value], narrow: bool) -> None:
        half = BLOCKS // 2
        _write(e, [[e.times(gate(e, row[at]), row[half + at]) for at in range(half)] for row in grid], panel, narrow)

    cases = {
        AS_FLOAT: partial(plain, False),
        AS_BF16: partial(plain, True),
        SILU_FLOAT: partial(gated, _silu, False),
        SILU_BF16: partial(gated, _silu, True),
        GELU_FLOAT: partial(gated, _gelu, False),
        GELU_BF16: partial(gated, _gelu, True),
    }
    e.switch(panel.finish, cases)


def _write(e: Emitter, grid: Grid, panel: Panel | Int8Panel | Int4Panel, narrow: bool) -> None:
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
