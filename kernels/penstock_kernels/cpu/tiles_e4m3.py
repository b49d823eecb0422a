"""The inner loops for weights in e4m3, decoded to bfloat16 in registers; activations are e4m3 too, held as bfloat16.

Columns share a scale by groups: one group is the whole width, or 128 columns where blocks of 128 x 128 have scales. The
products of a group are summed in pairs, by the instruction for bfloat16, and scaled as a whole. Many rows read a panel
that was decoded before, in the same order: a row's numbers are the same either way.
"""

from collections.abc import Callable
from typing import NamedTuple

from penstock_kernels.cpu import e4m3
from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, CODES, LANES, Value
from penstock_kernels.cpu.tiles import BLOCKS, MOST_ROWS, finish, for_each_count, grid, prefetch, word

MOST_ROWS_E4M3 = 4  # decoding takes registers, and time: more rows have their panel decoded once for all
COLUMNS_E4M3 = 4  # of a step
AHEAD_E4M3 = 1024
FIRST_PAIRS = [4 * lane + at for lane in range(LANES) for at in (0, 1)]
LAST_PAIRS = [4 * lane + at for lane in range(LANES) for at in (2, 3)]


class Floats8(NamedTuple):
    """What a tile reads and writes: addresses, strides in bytes, counts."""

    rows: Value
    x: Value
    x_stride: Value
    weights: Value
    steps: Value  # of a group
    bias: Value
    out: Value
    out_stride: Value
    columns: Value
    finish: Value
    groups: Value
    scales: Value  # float32 [64], of the outputs
    block_scales: Value  # float32 [groups, 4], of the blocks of sixteen outputs
    x_scales: Value  # float32 [rows, groups]


class Decoded(NamedTuple):
    """Vectors of codes, and where they are put as bfloat16."""

    source: Value
    steps: Value  # of four columns
    out: Value


Step = Callable[[Emitter, Floats8, Value], list[list[Value]]]  # pairs of columns, as the blocks have them


@micro_kernel(Floats8)
def e4m3_tile(e: Emitter, panel: Floats8) -> None:
    """Weights as they are stored."""
    _tile(e, panel, _decoded_step, MOST_ROWS_E4M3)


@micro_kernel(Floats8)
def wide_e4m3_tile(e: Emitter, panel: Floats8) -> None:
    """Weights that `decode` has put down as bfloat16."""
    _tile(e, panel, _wide_step, MOST_ROWS)


@micro_kernel(Decoded)
def decode(e: Emitter, given: Decoded) -> None:
    """A panel of codes, as bfloat16: twice as long."""

    def step(index: Value, _: list[Value]) -> list[Value]:
        source = e.add(given.source, e.mul(index, BLOCKS * BYTES))
        out = e.add(given.out, e.mul(index, 2 * BLOCKS * BYTES))
        for block in range(BLOCKS):
            for at, pair in enumerate(_decoded(e, e.add(source, BYTES * block))):
                e.store(e.add(out, BYTES * (at * BLOCKS + block)), pair, align=BYTES)
        return []

    e.loop(given.steps, [], step)


def _tile(e: Emitter, panel: Floats8, read: Step, most: int) -> None:
    def write(rows: int) -> None:
        def group(index: Value, totals: list[Value]) -> list[Value]:
            return _add_group(e, rows, panel, index, totals, _sums(e, rows, panel, index, read))

        flat = e.loop(panel.groups, [e.splat(0.0)] * (rows * BLOCKS), group)
        scales = [e.load(e.add(panel.scales, BYTES * block)) for block in range(BLOCKS)]
        scaled = [[e.times(*each) for each in zip(row, scales, strict=True)] for row in grid(flat, rows)]
        finish(e, scaled, panel)

    for_each_count(e, panel.rows, most, write)


def _sums(e: Emitter, rows: int, panel: Floats8, group: Value, read: Step) -> list[Value]:
    """Of one group [rows * blocks]."""
    start = e.mul(group, panel.steps)

    def step(index: Value, totals: list[Value]) -> list[Value]:
        at = e.add(start, index)
        if rows == 1:
            prefetch(e, e.add(panel.weights, e.mul(at, BLOCKS * BYTES), AHEAD_E4M3))
        for half, blocks in enumerate(read(e, panel, at)):
            words = [e.pairs(word(e, panel, row, e.add(e.mul(at, 2), half))) for row in range(rows)]
            cells = [(given, block) for given in words for block in blocks]
            totals = [e.dot_bf16(total, block, given) for total, (given, block) in zip(totals, cells, strict=True)]
        return totals

    return e.loop(panel.steps, [e.splat(0.0)] * (rows * BLOCKS), step)


def _decoded_step(e: Emitter, panel: Floats8, at: Value) -> list[list[Value]]:
    first = e.add(panel.weights, e.mul(at, BLOCKS * BYTES))
    blocks = (_decoded(e, e.add(first, BYTES * block)) for block in range(BLOCKS))
    return [list(half) for half in zip(*blocks, strict=True)]


def _decoded(e: Emitter, place: Value) -> list[Value]:
    """A block's first two columns of four, and its last two, as pairs."""
    return e4m3.decode(e, e.load(place, CODES, align=BYTES), FIRST_PAIRS, LAST_PAIRS)


def _wide_step(e: Emitter, panel: Floats8, at: Value) -> list[list[Value]]:
    first = e.add(panel.weights, e.mul(at, 2 * BLOCKS * BYTES))
    stored = [e.load_integers(e.add(first, BYTES * each), align=BYTES) for each in range(2 * BLOCKS)]
    pairs = [e.pairs(each) for each in stored]
    return [pairs[:BLOCKS], pairs[BLOCKS:]]


def _add_group(
    e: Emitter, rows: int, panel: Floats8, group: Value, totals: list[Value], sums: list[Value]
) -> list[Value]:
    first = e.add(panel.block_scales, e.mul(group, 4 * BLOCKS))
    blocks = [e.load_number(e.add(first, 4 * block)) for block in range(BLOCKS)]
    places = [e.mul(e.add(e.mul(panel.groups, row), group), 4) for row in range(rows)]
    by_row = [e.load_number(e.add(panel.x_scales, place)) for place in places]
    cells = [(row, block) for row in by_row for block in blocks]
    return [e.fma(found, e.times(*cell), total) for total, found, cell in zip(totals, sums, cells, strict=True)]
