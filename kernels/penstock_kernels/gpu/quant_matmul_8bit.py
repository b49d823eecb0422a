"""W8A8 and FP8 products: both operands as they lie, scales on the sums.

As in `quant_matmul_w4a16`, the weight is the first operand, `acc[n, m] = w[n, k] x[k, m]`, so that few rows of
activations are the tensor core's narrow side. Both operands are read along K, which is the only way in which Hopper's
8-bit products take them; weights stay as published. int8 sums are exact in int32. An e4m3 product on Hopper keeps
about 14 bits while it sums, so sums go to float32 every 128 columns, as DeepSeek-V3's report (2024) found needful.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dtype, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer
from penstock_kernels.gpu.quant_rows import quantize_fp8, quantize_fp8_runs, quantize_int8
from penstock_kernels.gpu.split_k import (
    COUNTED,
    Tile,
    check_operands,
    partial_sums,
    processors,
    share_of_steps,
    store_product,
    sum_splits,
)
from penstock_kernels.gpu.tile_candidates import FP8, FP8_BLOCKS, INT8, rows_candidates, rows_class
from penstock_kernels.gpu.tuning import tuned
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import BLOCK

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# By rows of x. Narrow tiles stream weights, 16 KiB a stage; the widest give the tensor cores most reuse that fits.
_INT8_TILES = (
    Tile(rows=16, columns=64, depth=256, num_warps=4, num_stages=4),
    Tile(rows=64, columns=64, depth=256, num_warps=4, num_stages=3),
    Tile(rows=128, columns=128, depth=128, num_warps=8, num_stages=4),
    Tile(rows=256, columns=128, depth=128, num_warps=8, num_stages=4),
)
_FP8_TILES = (
    Tile(rows=16, columns=64, depth=BLOCK, num_warps=4, num_stages=5),
    Tile(rows=64, columns=64, depth=BLOCK, num_warps=4, num_stages=4),
    Tile(rows=128, columns=128, depth=BLOCK, num_warps=8, num_stages=4),
)
_TILES = {INT8: _INT8_TILES, FP8: _FP8_TILES, FP8_BLOCKS: _FP8_TILES}


def w8a8_matmul(
    x: Tensor, weight: ChannelWeight, bias: Tensor | None = None, *, arrivals: Tensor, tile: Tile | None = None
) -> Tensor:
    """As `penstock_kernels.quant_matmul.w8a8_matmul`; `arrivals` and `tile` as in `channel_matmul`."""
    check_dtype("weight.codes", weight.codes, torch.int8)
    return channel_matmul(*quantize_int8(x), weight, bias, x.dtype, arrivals=arrivals, tile=tile)


def fp8_matmul(
    x: Tensor, weight: ChannelWeight, bias: Tensor | None = None, *, arrivals: Tensor, tile: Tile | None = None
) -> Tensor:
    """As `penstock_kernels.quant_matmul.fp8_matmul`; `arrivals` and `tile` as in `channel_matmul`."""
    check_dtype("weight.codes", weight.codes, torch.float8_e4m3fn)
    return channel_matmul(*quantize_fp8(x), weight, bias, x.dtype, arrivals=arrivals, tile=tile)


def fp8_block_matmul(
    x: Tensor, weight: BlockWeight, bias: Tensor | None = None, *, arrivals: Tensor, tile: Tile | None = None
) -> Tensor:
    """As `penstock_kernels.quant_matmul.fp8_block_matmul`; `arrivals` and `tile` as in `channel_matmul`."""
    return block_matmul(*quantize_fp8_runs(x), weight, bias, x.dtype, arrivals=arrivals, tile=tile)


def channel_matmul(
    codes: Tensor,
    scales: Tensor,
    weight: ChannelWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    arrivals: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """As `penstock_kernels.quant_matmul.channel_matmul`.

    `arrivals` is the stream's `split_arrivals`. `tile` overrides the choice by M, N and K, for tuning, and for sums
    that must not depend on M.
    """
    check_dtype("codes", codes, weight.codes.dtype)
    check_shape("scales", scales, (codes.shape[0],))
    integers = codes.dtype == torch.int8
    chosen = tile or _tile_for(INT8 if integers else FP8, codes, weight)
    sums = torch.int32 if integers else torch.float32
    return _launch(_channel_kernel, codes, scales, weight, bias, dtype, arrivals, chosen, sums)


def block_matmul(
    codes: Tensor,
    scales: Tensor,
    weight: BlockWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    arrivals: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """As `penstock_kernels.quant_matmul.block_matmul`; `arrivals` and `tile` as in `channel_matmul`."""
    check_dtype("codes", codes, torch.float8_e4m3fn)
    check_shape("scales", scales, (codes.shape[0], weight.scales.shape[1]))
    chosen = tile or _tile_for(FP8_BLOCKS, codes, weight)
    if chosen.depth != BLOCK:
        raise ShapeError(f"tile.depth is {chosen.depth} and should be {BLOCK}, the width of a block")
    by_run = scales.T.contiguous()  # as `quantize_fp8_runs` writes them: then nothing moves
    return _launch(_block_kernel, codes, by_run, weight, bias, dtype, arrivals, chosen, torch.float32)


def _tile_for(kernel: str, codes: Tensor, weight: ChannelWeight | BlockWeight) -> Tile:
    m, (n, k) = len(codes), weight.codes.shape
    in_code = next((tile for tile in _TILES[kernel] if tile.rows >= m), _TILES[kernel][-1])
    fitting = tuned(kernel, rows_class(in_code), in_code, codes.device)
    return fitting.split_for(m, n, k, processors(codes.device))


def _launch(
    kernel: Any,
    codes: Tensor,
    scales: Tensor,
    weight: ChannelWeight | BlockWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    arrivals: Tensor,
    tile: Tile,
    sums: torch.dtype,
) -> Tensor:
    m, (n, k) = len(codes), weight.codes.shape
    _check(codes, scales, weight, bias, dtype, arrivals)
    out = torch.empty(m, n, dtype=dtype, device=codes.device)
    if m:
        kernel[tile.grid(m, n)](
            codes,
            scales,
            weight.codes,
            weight.scales,
            bias,
            out,
            partial_sums(tile, m, n, arrivals, sums),
            arrivals,
            m,
            n,
            k,
            codes.stride(0),
            num_warps=tile.num_warps,
            **_constants(kernel, codes.dtype, tile, whole=k % tile.depth == 0),
        )
    return out


def _check(
    codes: Tensor,
    scales: Tensor,
    weight: ChannelWeight | BlockWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    arrivals: Tensor,
) -> None:
    n, k = weight.codes.shape
    check_shape("codes", codes, (None, k))
    check_dtype("dtype", torch.empty(0, dtype=dtype), *_DTYPES)
    check_dtype("scales", scales, torch.float32)
    check_operands(codes, arrivals, bias, n, scales=scales, weight_codes=weight.codes, weight_scales=weight.scales)


def _constants(kernel: Any, codes: torch.dtype, tile: Tile, *, whole: bool) -> dict[str, Any]:
    named = {"INTEGERS": codes == torch.int8} if kernel is _channel_kernel else {"BLOCK": BLOCK}
    sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
    return {**named, **sizes, "WHOLE": whole, "SPLITS": tile.splits, "STAGES": tile.num_stages}


@triton.jit
def load_operands(x, w, row, column, step, m, n, k, x_stride, WHOLE: tl.constexpr, DEPTH: tl.constexpr):
    """`w` [columns, DEPTH] and `x` [DEPTH, rows] of one step; rows of `w` past the end are its last one again."""
    depth = step * DEPTH + tl.arange(0, DEPTH)
    w_at = w + tl.minimum(column, n - 1)[:, None].to(tl.int64) * k + depth[None, :]
    x_at = x + row[None, :].to(tl.int64) * x_stride + depth[:, None]
    if WHOLE:
        return tl.load(w_at), tl.load(x_at, mask=row[None, :] < m, other=0.0)
    weights = tl.load(w_at, mask=depth[None, :] < k, other=0.0)
    return weights, tl.load(x_at, mask=(row[None, :] < m) & (depth[:, None] < k), other=0.0)


@triton.jit(do_not_specialize=COUNTED)
def _channel_kernel(
    x,
    x_scales,
    w,
    w_scales,
    bias,
    out,
    partials,
    arrivals,
    m,
    n,
    k,
    x_stride,
    INTEGERS: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((COLUMNS, ROWS), tl.int32 if INTEGERS else tl.float32)
    first, end = share_of_steps(tl.cdiv(k, DEPTH), SPLITS)
    for step in tl.range(first, end, num_stages=STAGES):
        weights, taken = load_operands(x, w, row, column, step, m, n, k, x_stride, WHOLE, DEPTH)
        if INTEGERS:
            acc = tl.dot(weights, taken, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(weights, taken, acc, max_num_imprecise_acc=128)
    acc, m = sum_splits(acc, partials, arrivals, m, SPLITS)
    w_scale = tl.load(w_scales + column, mask=column < n, other=0.0)
    x_scale = tl.load(x_scales + row, mask=row < m, other=0.0)
    store_product(acc.to(tl.float32) * w_scale[:, None] * x_scale[None, :], out, bias, column, row, m, n)


@triton.jit(do_not_specialize=COUNTED)
def _block_kernel(
    x,
    x_scales,
    w,
    w_scales,
    bias,
    out,
    partials,
    arrivals,
    m,
    n,
    k,
    x_stride,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    blocks = tl.cdiv(k, BLOCK)
    w_scale_at = w_scales + tl.program_id(1) * COLUMNS // BLOCK * blocks  # a tile lies in one row of blocks
    # A thread holds few rows and many columns of an accumulator: many rows of x lie upright, for their scales' sake.
    UPRIGHT: tl.constexpr = ROWS >= 64
    acc = tl.zeros((ROWS, COLUMNS) if UPRIGHT else (COLUMNS, ROWS), tl.float32)
    first, end = share_of_steps(blocks, SPLITS)
    for block in tl.range(first, end, num_stages=STAGES):
        weights, taken = load_operands(x, w, row, column, block, m, n, k, x_stride, WHOLE, DEPTH)
        scale = tl.load(x_scales + block * m + row, mask=row < m, other=0.0) * tl.load(w_scale_at + block)
        if UPRIGHT:
            acc += tl.dot(tl.trans(taken), tl.trans(weights)) * scale[:, None]
        else:
            acc += tl.dot(weights, taken) * scale[None, :]
    if UPRIGHT:
        acc = tl.trans(acc)
    acc, m = sum_splits(acc, partials, arrivals, m, SPLITS)
    store_product(acc, out, bias, column, row, m, n)


def compile_cases() -> list[CompileCase]:
    """Every tile that may be chosen: of int8, e4m3 and e4m3 in blocks."""
    kinds = {INT8: (_channel_kernel, torch.int8), FP8: (_channel_kernel, torch.float8_e4m3fn)}
    kinds[FP8_BLOCKS] = (_block_kernel, torch.float8_e4m3fn)
    return [
        _case(*kinds[name], tile)
        for name, in_code in _TILES.items()
        for each in in_code
        for tile in rows_candidates(name, each)
    ]


def _case(kernel: Any, codes: torch.dtype, tile: Tile) -> CompileCase:
    types = {"x": pointer(codes), "x_scales": "*fp32", "w": pointer(codes), "w_scales": "*fp32", "out": "*bf16"}
    counted = {"partials": "*i32" if codes == torch.int8 else "*fp32", "arrivals": "*i32"}
    split = replace(tile, splits=8) if tile.rows == 16 else tile
    return CompileCase(
        kernel,
        types | counted | dict.fromkeys(("m", "n", "k", "x_stride"), "i32"),
        {"bias": None, **_constants(kernel, codes, split, whole=True)},
        tile.num_warps,
        tile.num_stages,
        f"{kernel.__name__.strip('_')} {types['x'][1:]} {tile.label}",
        divisible=("n", "k", "x_stride"),
    )
