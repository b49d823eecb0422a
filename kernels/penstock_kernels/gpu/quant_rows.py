"""Quantization of activations to 8 bits in one pass: a program reads a row, or some of its runs of 128, and keeps it.

A row or run that holds a NaN or an infinity gets that for its scale, so what is made of it shows.
Bytes: the row read once, a byte per element and the scales written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer
from penstock_kernels.quant_rows import BLOCK, E4M3_LIMIT, INT8_LIMIT, SMALLEST

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LIMITS = {torch.int8: INT8_LIMIT, torch.float8_e4m3fn: E4M3_LIMIT}
_RUNS = 16  # of 128 columns, per program
_WIDEST = 65536  # columns that a program keeps at once


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `penstock_kernels.quant_rows.quantize_int8`."""
    return _rows(x, torch.int8)


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `penstock_kernels.quant_rows.quantize_fp8`."""
    return _rows(x, torch.float8_e4m3fn)


def quantize_fp8_runs(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `penstock_kernels.quant_rows.quantize_fp8_runs`; the scales lie run by run, as products read them."""
    codes, scales = _launch(x, torch.float8_e4m3fn, _RUNS, BLOCK)
    return codes, scales.T


def _rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    check_shape("x", x, (None, None))
    if x.shape[1] > _WIDEST:
        raise ShapeError(f"x is {x.shape[1]} wide and should be at most {_WIDEST}")
    codes, scales = _launch(x, dtype, 1, max(16, triton.next_power_of_2(x.shape[1])))
    return codes, scales[0]


def _launch(x: Tensor, dtype: torch.dtype, runs: int, run: int) -> tuple[Tensor, Tensor]:
    """Codes [m, width] and scales [runs of a row, m]."""
    check_shape("x", x, (None, None))
    check_dtype("x", x, *_DTYPES)
    check_dense("x", x)
    m, width = x.shape
    codes = torch.empty(m, width, dtype=dtype, device=x.device)
    scales = torch.empty(triton.cdiv(width, run), m, dtype=torch.float32, device=x.device)
    if codes.numel():
        _quantize_kernel[(m, triton.cdiv(width, run * runs))](
            x, codes, scales, m, width, x.stride(0), num_warps=_warps(runs * run), **_constants(dtype, runs, run)
        )
    return codes, scales


def _constants(dtype: torch.dtype, runs: int, run: int) -> dict[str, object]:
    return {"LIMIT": _LIMITS[dtype], "FLOOR": SMALLEST, "RUNS": runs, "RUN": run}


def _warps(elements: int) -> int:
    """Of 16 elements to a thread and more, as rows get wider."""
    return min(16, max(1, elements // 512))


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quantize_kernel(
    x,
    codes,
    scales,
    m,
    width,
    x_stride,
    LIMIT: tl.constexpr,
    FLOOR: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1) * RUNS + tl.arange(0, RUNS)
    column = run[:, None] * RUN + tl.arange(0, RUN)[None, :]
    inside = column < width
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    peak = _larger(tl.reduce(tl.abs(values), 1, _larger), FLOOR)
    scale = tl.div_rn(peak, tl.full((RUNS,), LIMIT, tl.float32))
    scaled = tl.clamp(tl.div_rn(values, tl.broadcast_to(scale[:, None], (RUNS, RUN))), -LIMIT, LIMIT)
    if codes.dtype.element_ty == tl.int8:
        TO_WHOLE: tl.constexpr = 1.5 * 2.0**23  # the sum has no bits left for a fraction, and rounds halves to even
        scaled = (scaled + TO_WHOLE) - TO_WHOLE
    tl.store(codes + row * width + column, scaled.to(codes.dtype.element_ty), mask=inside)
    tl.store(scales + run * m + row, scale, mask=run * RUN < width)


def compile_cases() -> list[CompileCase]:
    """Llama-3.1-8B's widths to int8, e4m3 and e4m3 in runs."""
    bf16, int8, fp8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
    wide = [_case(bf16, target, 1, 16384) for target in (int8, fp8)]
    return [*wide, _case(torch.float16, int8, 1, 4096), _case(bf16, fp8, _RUNS, BLOCK)]


def _case(source: torch.dtype, target: torch.dtype, runs: int, run: int) -> CompileCase:
    types = {"x": pointer(source), "codes": pointer(target), "scales": "*fp32"}
    sizes = dict.fromkeys(("m", "width", "x_stride"), "i32")
    label = f"quantize {types['x'][1:]} to {types['codes'][1:]} {runs}x{run}"
    divisible = ("width", "x_stride")
    return CompileCase(
        _quantize_kernel, types | sizes, _constants(target, runs, run), _warps(runs * run), 1, label, divisible
    )
