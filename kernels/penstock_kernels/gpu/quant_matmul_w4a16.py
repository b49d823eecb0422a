"""W4A16: 16-bit activations times 4-bit weights, dequantized in registers; for many rows, dequantized beforehand.

The weight is the first operand of the tensor core's product, `acc[n, m] = w[n, k] x[k, m]`: it comes to the registers
anyway to be dequantized, and from there a warp group's product takes its first operand without a way back through
shared memory. Few rows of activations are then the narrow side, of which 16 cost nothing.

Dequantizing takes a shift, a mask and a fused multiply-add for two weights. Four bits at the top of a mantissa whose
exponent bits are zero are the subnormal number `code * 2**-18` (float16) or `code * 2**-130` (bfloat16), exactly; one
multiply-add lifts it to eighths and takes the zero point off, exactly again. The group's scale, times eight, is applied
to the float32 sums, so no weight is ever rounded.

Bytes decide up to about 64 rows: N * K / 2 of codes and 4 per group, a quarter of bfloat16's. On an H200 (copy
4.3 TB/s, bfloat16 product about 790 TFLOP/s, both measured) 4096 x 14336 is 7 us of bytes against 27 us in bfloat16.
Dequantizing beforehand moves N * K * 2.5 bytes, 34 us there: as long as that is a large part of cuBLAS's own time, the
fused kernel stays ahead at half of cuBLAS's rate, which by that arithmetic is up to about 256 rows.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import check_dtype, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer
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
from penstock_kernels.gpu.tile_candidates import FUSED, W4A16, Limit, rows_candidates, rows_class
from penstock_kernels.gpu.tuning import tuned
from penstock_kernels.quant_int4 import Int4Weight

FUSED_ROWS = (
    256  # with more rows, dequantize and leave the product to cuBLAS: by the arithmetic above, not yet measured
)
STEP = 128  # columns of the weight per step, whatever the slab
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# By rows of x. From the machine code for sm_90 (Triton 3.6, bfloat16): the 16-row tile takes 2.6 instructions of a
# thread per weight and 160 registers, so three programs share an SM; the 128-row tile stays under 255 without spilling.
_TILES = (
    Tile(rows=16, columns=128, depth=STEP, num_warps=4, num_stages=4),
    Tile(rows=32, columns=128, depth=STEP, num_warps=4, num_stages=4),
    Tile(rows=64, columns=128, depth=STEP, num_warps=8, num_stages=3),
    Tile(rows=128, columns=128, depth=STEP, num_warps=8, num_stages=3),
)


def w4a16_matmul(
    x: Tensor, weight: Int4Weight, bias: Tensor | None = None, *, arrivals: Tensor, tile: Tile | None = None
) -> Tensor:
    """`x` [M, K] times 4-bit weights, plus `bias` [N]: [M, N] of x's dtype. See `penstock_kernels.quant_matmul`.

    `arrivals` is the stream's `split_arrivals`. `tile` overrides the choice by M, N and K, for tuning, and for sums
    that must not depend on M; it also keeps the product in this kernel, whatever M is.
    """
    check_shape("x", x, (None, weight.k))
    check_dtype("x", x, *_DTYPES)
    check_operands(x, arrivals, bias, weight.n, words=weight.words, scales=weight.scales)
    taken = weight.activations(x)
    if tile is None and len(x) > tuned(W4A16, FUSED, Limit(FUSED_ROWS), x.device).rows:
        return F.linear(taken, dequantize_int4(weight, x.dtype), bias)
    in_code = _fitting(len(x))
    base = tile or tuned(W4A16, rows_class(in_code), in_code, x.device)
    chosen = tile or base.split_for(len(x), weight.n, weight.k, processors(x.device))
    return _launch(taken, weight, bias, arrivals, chosen)


def tile_for(m: int, n: int, k: int, sms: int) -> Tile:
    """The tile for `m` rows times [n, k] on `sms` multiprocessors."""
    return _fitting(m).split_for(m, n, k, sms)


def _fitting(m: int) -> Tile:
    return next((tile for tile in _TILES if tile.rows >= m), _TILES[-1])


def dequantize_int4(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """The weights [n, k] in `dtype`, columns in the layout's order; each is rounded once, from float32."""
    check_dtype("dtype", torch.empty(0, dtype=dtype), *_DTYPES)
    out = torch.empty(weight.n, weight.k, dtype=dtype, device=weight.words.device)
    grid = (triton.cdiv(weight.k, weight.slab), triton.cdiv(weight.n, 64))
    _dequantize_kernel[grid](
        weight.words, weight.scales, out, weight.n, weight.k, weight.words.shape[1], SLAB=weight.slab, COLUMNS=64
    )
    return out


def _launch(x: Tensor, weight: Int4Weight, bias: Tensor | None, arrivals: Tensor, tile: Tile) -> Tensor:
    m = len(x)
    out = torch.empty(m, weight.n, dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    _w4a16_kernel[tile.grid(m, weight.n)](
        x,
        weight.words,
        weight.scales,
        bias,
        out,
        partial_sums(tile, m, weight.n, arrivals, torch.float32),
        arrivals,
        m,
        weight.n,
        weight.k,
        x.stride(0),
        weight.words.shape[1],
        SLAB=weight.slab,
        UNROLL=STEP // weight.slab,
        WHOLE=weight.k % STEP == 0,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        SPLITS=tile.splits,
        STAGES=tile.num_stages,
        num_warps=tile.num_warps,
        enable_fp_fusion=True,
    )
    return out


@triton.jit
def nibble_pairs(words, index: tl.constexpr, dtype: tl.constexpr):
    """Codes of nibble `index` of both halves [..., 2]: float32 in eighths, 16-bit types as the module's subnormals."""
    if dtype == tl.float32:
        low = ((words >> (4 * index)) & 15).to(dtype) * 0.125
        high = ((words >> (4 * index + 16)) & 15).to(dtype) * 0.125
    else:
        TOP: tl.constexpr = 3 if dtype == tl.bfloat16 else 6  # lowest of a mantissa's four highest bits
        MASK: tl.constexpr = 0x000F000F << TOP
        bits = (words << (TOP - 4 * index) if 4 * index < TOP else words >> (4 * index - TOP)) & MASK
        low = bits.to(tl.int16).to(dtype, bitcast=True)
        high = (bits >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.join(low, high)


@triton.jit
def unpack_slab(words, dtype: tl.constexpr):
    """Codes [columns, slab] of `words` [columns, slab / 8], as `nibble_pairs` gives them."""
    even = tl.join(nibble_pairs(words, 0, dtype), nibble_pairs(words, 2, dtype))
    odd = tl.join(nibble_pairs(words, 1, dtype), nibble_pairs(words, 3, dtype))
    runs = tl.permute(tl.join(even, odd), (0, 3, 4, 1, 2))  # [columns, 2, 2, words, half]: the run's number before
    return tl.reshape(runs, (words.shape[0], words.shape[1] * 8))


@triton.jit
def eighths(words, zeros, dtype: tl.constexpr):
    """`(code - zero) / 8` [columns, slab] in `dtype`, exact; `words` [columns, slab / 8], `zeros` float32 [columns]."""
    codes = unpack_slab(words, dtype)
    less = (zeros * -0.125).to(dtype)[:, None]
    if dtype == tl.float32:
        return codes + less
    LIFT: tl.constexpr = 2.0**127 if dtype == tl.bfloat16 else 2.0**15
    return codes * LIFT + less  # fused and two at a time, which `tl.fma` with a zero of each column would not be


@triton.jit
def scale_and_zero(packed):
    """float32 scale and zero of a scale word."""
    return (packed & -256).to(tl.float32, bitcast=True), (packed & 255).to(tl.float32)


@triton.jit(do_not_specialize=COUNTED)
def _w4a16_kernel(
    x,
    words,
    scales,
    bias,
    out,
    partials,
    arrivals,
    m,
    n,
    k,
    x_stride,
    padded_n,
    SLAB: tl.constexpr,
    UNROLL: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    WORDS: tl.constexpr = SLAB // 8
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, SLAB)
    word_at = words + column[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    x_at = x + row[None, :].to(tl.int64) * x_stride + depth[:, None]
    first, end = share_of_steps(tl.cdiv(k, SLAB * UNROLL), SPLITS)
    acc = tl.zeros((COLUMNS, ROWS), tl.float32)
    for step in tl.range(first, end, num_stages=STAGES):
        for unrolled in tl.static_range(UNROLL):
            slab = step * UNROLL + unrolled
            codes = tl.load(word_at + slab * padded_n * WORDS)
            scale, zero = scale_and_zero(tl.load(scales + slab * padded_n + column))
            inside = row[None, :] < m
            if not WHOLE:
                inside = inside & (slab * SLAB + depth[:, None] < k)
            taken = tl.load(x_at + slab * SLAB, mask=inside, other=0.0)
            group = tl.dot(eighths(codes, zero, dtype), taken, input_precision="ieee")
            acc += group * (scale * 8.0)[:, None]
    acc, m = sum_splits(acc, partials, arrivals, m, SPLITS)
    store_product(acc, out, bias, column, row, m, n)


@triton.jit
def _dequantize_kernel(words, scales, out, n, k, padded_n, SLAB: tl.constexpr, COLUMNS: tl.constexpr):
    WORDS: tl.constexpr = SLAB // 8
    slab = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = slab * SLAB + tl.arange(0, SLAB)
    codes = tl.load(words + (slab * padded_n + column[:, None]) * WORDS + tl.arange(0, WORDS)[None, :])
    scale, zero = scale_and_zero(tl.load(scales + slab * padded_n + column))
    weights = eighths(codes, zero, tl.float32) * (scale * 8.0)[:, None]
    inside = (column[:, None] < n) & (depth[None, :] < k)
    cell = out + column[:, None].to(tl.int64) * k + depth[None, :]
    tl.store(cell, weights.to(out.dtype.element_ty), mask=inside)


def compile_cases() -> list[CompileCase]:
    """Every tile that may be chosen in bfloat16, each slab width, zero to one bias, both kernels in float16 once."""
    bf16, fp16 = torch.bfloat16, torch.float16
    tiles = [_case(bf16, tile, slab=128) for each in _TILES for tile in rows_candidates(W4A16, each)]
    slabs = [_case(bf16, _TILES[0], slab) for slab in (32, 64)]
    return [*tiles, *slabs, _case(fp16, _TILES[0], 128, bias=True), _dequantize_case(bf16), _dequantize_case(fp16)]


def _case(dtype: torch.dtype, tile: Tile, slab: int, bias: bool = False) -> CompileCase:
    data = pointer(dtype)
    tensors = {"x": data, "words": "*i32", "scales": "*i32", "bias": data, "out": data}
    counted = {"partials": "*fp32", "arrivals": "*i32"}
    sizes = dict.fromkeys(("m", "n", "k", "x_stride", "padded_n"), "i32")
    constants: dict[str, object] = {
        "SLAB": slab,
        "UNROLL": STEP // slab,
        "WHOLE": True,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "SPLITS": 8 if tile.rows == _TILES[0].rows else 1,
        "STAGES": tile.num_stages,
    }
    return CompileCase(
        _w4a16_kernel,
        tensors | counted | sizes,
        constants if bias else {**constants, "bias": None},
        tile.num_warps,
        tile.num_stages,
        f"w4a16 {data[1:]} {tile.label}, slab {slab}" + (" bias" if bias else ""),
        divisible=("n", "k", "x_stride", "padded_n"),
    )


def _dequantize_case(dtype: torch.dtype) -> CompileCase:
    signature = {"words": "*i32", "scales": "*i32", "out": pointer(dtype), "n": "i32", "k": "i32", "padded_n": "i32"}
    constants: dict[str, object] = {"SLAB": 128, "COLUMNS": 64}
    label = f"dequantize_int4 {signature['out'][1:]}"
    return CompileCase(_dequantize_kernel, signature, constants, 4, 1, label, divisible=("n", "k", "padded_n"))
