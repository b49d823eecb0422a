"""Loops over the panels of a linear layer, shared among threads: see `tiles`."""

from numba import prange

from penstock_kernels.cpu.compiled import compiled, part
from penstock_kernels.cpu.emit import BYTES
from penstock_kernels.cpu.tiles import (
    BLOCKS,
    MOST_ROWS,
    MOST_ROWS_INT4,
    PANEL,
    bf16_tile,
    f32_tile,
    int4_tile,
    int8_tile,
)

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
def multiply_int4(
    rows: int,
    x: int,
    x_stride: int,
    x_scales: int,
    x_corrections: int,
    weights: int,
    steps: int,
    groups: int,
    scales: int,
    bias: int,
    width: int,
    panel_width: int,
    finish: int,
    out: int,
    out_stride: int,
    out_size: int,
) -> None:
    """As `multiply`, of the signed bytes that `round_rows` makes; `steps` are those of a group."""
    tiles = _tiles(rows, MOST_ROWS_INT4)
    for panel in prange(_tiles(width, panel_width)):
        column = panel * panel_width
        w, s = weights + panel * groups * steps * STEP, scales + 2 * panel * groups * PANEL
        for tile in range(tiles):
            first, end = tile * rows // tiles, (tile + 1) * rows // tiles
            int4_tile(
                end - first,
                x + first * x_stride,
                x_stride,
                w,
                steps,
                bias + 4 * panel * PANEL,
                out + first * out_stride + column * out_size,
                out_stride,
                width - column,
                finish,
                groups,
                s,
                x_scales + 4 * first * groups,
                x_corrections + 4 * first * groups,
            )
