"""The inner loops for weights of 4 and 3 bits, which share a scale, and a zero where they have them, by groups.

Activations are signed bytes, rounded by runs of columns; a group is one run or several. The sum of a run is exact:

    sum of x * (code - zero)  =  sum of x * code  -  zero * (sum of x)

What is taken off is where each sum begins; `minus_sums` is the same for all outputs. It is then scaled by the run and
the group, and added to the others.
"""

from collections.abc import Callable
from typing import NamedTuple

from penstock_kernels.cpu.emit import Emitter, micro_kernel
from penstock_kernels.cpu.kinds import BYTES, LANES, Value
from penstock_kernels.cpu.tiles import BLOCKS, PANEL, finish, for_each_count, grid, word

MOST_ROWS_FEW_BITS = 4  # with as many sums of whole runs, which are touched once a run

# A step of a block, and what it holds: vectors in memory, and words of four columns.
VECTORS_4, WORDS_4 = 1, 2
VECTORS_3, WORDS_3 = 3, 8


class FewBits(NamedTuple):
    """What a tile reads and writes: addresses, strides in bytes, counts. Codes are 0 to 15, or 0 to 7."""

    rows: Value
    x: Value
    x_stride: Value
    weights: Value
    steps: Value  # of a run
    bias: Value
    out: Value
    out_stride: Value
    columns: Value
    finish: Value
    groups: Value
    runs: Value  # of a group
    scales: Value  # float16 [groups, 64]
    zeros: Value  # bytes [groups, 64], or [64] for all groups
    zeros_step: Value  # from group to group: 64, or 0
    x_scales: Value  # float32 [rows, groups * runs]
    minus_sums: Value  # int32 [rows, groups * runs]


class Layout(NamedTuple):
    """How a step of a block is stored, and becomes words of four codes."""

    vectors: int
    words: int
    unpack: Callable[[Emitter, list[Value]], list[Value]]


def _nibbles(e: Emitter, stored: list[Value]) -> list[Value]:
    """The low nibbles are one word, the high ones the next."""
    return [e.low_nibbles(stored[0]), e.high_nibbles(stored[0])]


def _three_bits(e: Emitter, stored: list[Value]) -> list[Value]:
    """Two vectors have the lower two bits of four words each, the third one the highest bit of all eight."""
    *pairs, tops = stored
    lower = [e.only(e.right(pair, 2 * at), 0x03030303) for pair in pairs for at in range(WORDS_3 // 2)]
    upper = [e.only(e.left(tops, 2 - at) if at < 2 else e.right(tops, at - 2), 0x04040404) for at in range(WORDS_3)]
    return [e.joined(*each) for each in zip(lower, upper, strict=True)]


INT4 = Layout(VECTORS_4, WORDS_4, _nibbles)
INT3 = Layout(VECTORS_3, WORDS_3, _three_bits)


@micro_kernel(FewBits)
def int4_tile(e: Emitter, panel: FewBits) -> None:
    """Nibbles."""
    _tile(e, panel, INT4)


@micro_kernel(FewBits)
def int3_tile(e: Emitter, panel: FewBits) -> None:
    """Three bits."""
    _tile(e, panel, INT3)


def _tile(e: Emitter, panel: FewBits, layout: Layout) -> None:
    def write(rows: int) -> None:
        def group(index: Value, totals: list[Value]) -> list[Value]:
            scales = e.add(panel.scales, e.mul(index, 2 * PANEL))
            zeros = e.add(panel.zeros, e.mul(index, panel.zeros_step))

            def run(at: Value, totals: list[Value]) -> list[Value]:
                place = e.add(e.mul(index, panel.runs), at)
                sums = _sums(e, rows, panel, layout, place, _begun(e, rows, panel, place, zeros))
                return _add_run(e, totals, sums, scales, panel, place)

            return e.loop(panel.runs, totals, run)

        flat = e.loop(panel.groups, [e.splat(0.0)] * (rows * BLOCKS), group)
        finish(e, grid(flat, rows), panel)

    for_each_count(e, panel.rows, MOST_ROWS_FEW_BITS, write)


def _begun(e: Emitter, rows: int, panel: FewBits, run: Value, zeros: Value) -> list[Value]:
    """What sums [rows * blocks] begin with: minus the zero times the sum of the run's activations."""
    sums = [e.load_word(e.add(panel.minus_sums, each)) for each in _places(e, rows, panel, run)]
    blocks = [e.unsigned(e.load_octets(e.add(zeros, LANES * block))) for block in range(BLOCKS)]
    # The upper halves of the zeros' words are 0: of each word of a sum only the lower half, the sum itself, counts.
    return [e.dot_s16(e.splat_int(0), block, each) for each in sums for block in blocks]


def _sums(e: Emitter, rows: int, panel: FewBits, layout: Layout, run: Value, begun: list[Value]) -> list[Value]:
    """The exact sums [rows * blocks] of one run."""
    start, step_bytes = e.mul(run, panel.steps), BLOCKS * BYTES * layout.vectors

    def step(index: Value, totals: list[Value]) -> list[Value]:
        at = e.add(start, index)
        first = e.add(panel.weights, e.mul(at, step_bytes))
        given = [
            [word(e, panel, row, e.add(e.mul(at, layout.words), each)) for each in range(layout.words)]
            for row in range(rows)
        ]
        blocks = [_block(e, layout, first, block) for block in range(BLOCKS)]
        cells = [(block, words) for words in given for block in blocks]
        return [_dots(e, total, *cell) for total, cell in zip(totals, cells, strict=True)]

    return e.loop(panel.steps, begun, step)


def _block(e: Emitter, layout: Layout, first: Value, block: int) -> list[Value]:
    """The words of a block in a step that begins at `first`: its vectors lie a step's block apart."""
    places = [e.add(first, BYTES * (BLOCKS * vector + block)) for vector in range(layout.vectors)]
    return layout.unpack(e, [e.load_integers(place, align=BYTES) for place in places])


def _dots(e: Emitter, total: Value, codes: list[Value], words: list[Value]) -> Value:
    for code, given in zip(codes, words, strict=True):
        total = e.dot_u8s8(total, code, given)
    return total


def _places(e: Emitter, rows: int, panel: FewBits, run: Value) -> list[Value]:
    """Where each row's number for a run lies."""
    runs = e.mul(panel.groups, panel.runs)
    return [e.mul(e.add(e.mul(runs, row), run), 4) for row in range(rows)]


def _add_run(
    e: Emitter, totals: list[Value], exact: list[Value], scales: Value, panel: FewBits, run: Value
) -> list[Value]:
    columns = [e.load_f16(e.add(scales, 2 * LANES * block)) for block in range(BLOCKS)]
    rows = len(totals) // BLOCKS
    by_row = [e.load_number(e.add(panel.x_scales, each)) for each in _places(e, rows, panel, run)]
    cells = [(row, column) for row in by_row for column in columns]
    return [
        e.fma(e.to_float(found), e.times(column, row), total)
        for total, found, (row, column) in zip(totals, exact, cells, strict=True)
    ]
