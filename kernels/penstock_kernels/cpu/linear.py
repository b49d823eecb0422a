"""Loops over the panels of a linear layer, shared among threads: see `tiles`."""

from numba import prange

from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.kinds import BYTES
from penstock_kernels.cpu.tiles import BLOCKS, MOST_ROWS, PANEL, bf16_tile, f32_tile, int8_tile
from penstock_kernels.cpu.tiles_e4m3 import MOST_ROWS_E4M3, decode, e4m3_tile, wide_e4m3_tile
from penstock_kernels.cpu.tiles_few_bits import (
    MOST_ROWS_FEW_BITS,
    VECTORS_3,
    VECTORS_4,
    int3_tile,
    int4_tile,
)

KINDS = INT4, INT3 = range(2)  # of weights in few bits
STEP = BLOCKS * BYTES  # bytes of weights


@part
def _tiles(rows: int, most: int) -> int:
    return (rows + most - 1) // most


@compiled
def multiply(
    size: int,
    rows: int,
    x: int,
    x_stride: int,
    weights: int,
    steps: int,
    bias: int,
    width: int,
    panel_width: int,
    finish: int,
    out: int,
    out_stride: int,
    out_size: int,
) -> None:
    """`size` is 2 for bfloat16, 4 for float32; `width` columns of output, `panel_width` from each panel; addresses,
    and strides in bytes."""
    tiles = _tiles(rows, MOST_ROWS)
    for panel in prange(_tiles(width, panel_width)):
        column = panel * panel_width
        w, b, left = weights + panel * steps * STEP, bias + 4 * panel * PANEL, width - column
        for tile in range(tiles):
            first, end = tile * rows // tiles, (tile + 1) * rows // tiles
            given, place = x + first * x_stride, out + first * out_stride + column * out_size
            if size == 2:
                bf16_tile(end - first, given, x_stride, w, steps, b, place, out_stride, left, finish)
            else:
                f32_tile(end - first, given, x_stride, w, steps, b, place, out_stride, left, finish)


@compiled
def multiply_int8(
    rows: int,
    x: int,
    x_stride: int,
    x_scales: int,
    weights: int,
    steps: int,
    scales: int,
    corrections: int,
    bias: int,
    width: int,
    panel_width: int,
    finish: int,
    out: int,
    out_stride: int,
    out_size: int,
) -> None:
    """As `multiply`, of the unsigned bytes that `round_rows` makes."""
    tiles = _tiles(rows, MOST_ROWS)
    for panel in prange(_tiles(width, panel_width)):
        column, at = panel * panel_width, 4 * panel * PANEL
        w, left = weights + panel * steps * STEP, width - column
        for tile in range(tiles):
            first, end = tile * rows // tiles, (tile + 1) * rows // tiles
            int8_tile(
                end - first,
                x + first * x_stride,
                x_stride,
                w,
                steps,
                bias + at,
                out + first * out_stride + column * out_size,
                out_stride,
                left,
                finish,
                x_scales + 4 * first,
                scales + at,
                corrections + at,
            )


@compiled
def multiply_few_bits(
    kind: int,
    rows: int,
    x: int,
    x_stride: int,
    x_scales: int,
    minus_sums: int,
    weights: int,
    steps: int,
    groups: int,
    runs: int,
    scales: int,
    zeros: int,
    zeros_step: int,
    bias: int,
    width: int,
    panel_width: int,
    finish: int,
    out: int,
    out_stride: int,
    out_size: int,
) -> None:
    """As `multiply`, of the signed bytes that `round_rows` makes; `steps` are those of a run, `runs` those of a group.
    `kind` is of `KINDS`; `zeros_step` is 0 where 64 bytes of `zeros` serve all groups and panels."""
    tiles, step = _tiles(rows, MOST_ROWS_FEW_BITS), STEP * (VECTORS_4 if kind == INT4 else VECTORS_3)
    for panel in prange(_tiles(width, panel_width)):
        column, left = panel * panel_width, width - panel * panel_width
        w, s = weights + panel * groups * runs * steps * step, scales + 2 * panel * groups * PANEL
        z, b = zeros + panel * groups * zeros_step, bias + 4 * panel * PANEL
        for tile in range(tiles):
            first, end = tile * rows // tiles, (tile + 1) * rows // tiles
            count, given, place = end - first, x + first * x_stride, out + first * out_stride + column * out_size
            at = 4 * first * groups * runs
            xs, sums = x_scales + at, minus_sums + at
            if kind == INT4:
                int4_tile(
                    count, given, x_stride, w, steps, b, place, out_stride, left, finish, groups, runs, s, z,
                    zeros_step, xs, sums,
                )  # fmt: skip
            else:
                int3_tile(
                    count, given, x_stride, w, steps, b, place, out_stride, left, finish, groups, runs, s, z,
                    zeros_step, xs, sums,
                )  # fmt: skip


@compiled
def multiply_e4m3(
    threads: int,
    rows: int,
    x: int,
    x_stride: int,
    x_scales: int,
    weights: int,
    steps: int,
    groups: int,
    scales: int,
    block_scales: int,
    bias: int,
    width: int,
    panel_width: int,
    finish: int,
    out: int,
    out_stride: int,
    out_size: int,
    wide: int,
) -> None:
    """As `multiply`, of what `round_to_e4m3` makes; `steps` are those of a group. Of more than a few rows each thread
    decodes a panel into its part of `wide`, which has room for it."""
    panels, panel_bytes = _tiles(width, panel_width), groups * steps * STEP
    many = rows > MOST_ROWS_E4M3
    tiles = _tiles(rows, MOST_ROWS if many else MOST_ROWS_E4M3)
    for thread in prange(threads):
        for panel in range(thread, panels, threads):
            column, left = panel * panel_width, width - panel * panel_width
            w, s, b = weights + panel * panel_bytes, scales + 4 * panel * PANEL, bias + 4 * panel * PANEL
            bs, room = block_scales + 4 * panel * groups * BLOCKS, wide + 2 * thread * panel_bytes
            if many:
                decode(w, groups * steps, room)
            for tile in range(tiles):
                first, end = tile * rows // tiles, (tile + 1) * rows // tiles
                count, given, place = end - first, x + first * x_stride, out + first * out_stride + column * out_size
                xs = x_scales + 4 * first * groups
                if many:
                    wide_e4m3_tile(
                        count, given, x_stride, room, steps, b, place, out_stride, left, finish, groups, s, bs, xs
                    )
                else:
                    e4m3_tile(count, given, x_stride, w, steps, b, place, out_stride, left, finish, groups, s, bs, xs)
