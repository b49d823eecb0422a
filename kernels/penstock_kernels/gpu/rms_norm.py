"""RMS norm in one pass: each row is read once and written once, its numbers stay in registers between.

Bytes: x, out and, with a residual, the residual read and written. Shapes are those of `penstock_kernels.rms_norm`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 32768
TILE_ELEMENTS = 2048  # of a program that holds several narrow rows
ELEMENTS_PER_WARP = 512  # 16 to a thread: two 16-byte loads of 16-bit numbers in flight for each operand


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    rows,
    heads,
    width,
    x_stride,
    head_stride,
    residual_stride,
    eps,
    PLUS_ONE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row r is head `r % heads` of token `r // heads`."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < width)
    values = tl.load(x + row // heads * x_stride + row % heads * head_stride + column, mask, 0.0)
    if residual is not None:
        at = residual + row * residual_stride + column
        total = tl.load(at, mask, 0.0).to(tl.float32) + values.to(tl.float32)
        values = total.to(residual.dtype.element_ty)
        tl.store(at, values, mask)
    exact = values.to(tl.float32)
    mean_square = tl.sum(exact * exact, axis=1, keep_dims=True) / width
    factor = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    if PLUS_ONE:
        factor += 1.0
    normed = exact * tl.rsqrt(mean_square + eps) * factor
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False) -> Tensor:
    """As `penstock_kernels.rms_norm.rms_norm`, of `x` [rows, width] or [tokens, heads, width]."""
    return _launch(x, None, weight, eps, plus_one)


def rms_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False
) -> tuple[Tensor, Tensor]:
    """As `penstock_kernels.rms_norm.rms_norm_residual`."""
    check_shape("x", x, (None, None))
    check_shape("residual", residual, tuple(x.shape))
    check_dtype("residual", residual, x.dtype)
    check_dense("residual", residual)
    return _launch(x, residual, weight, eps, plus_one), residual


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    _check(x, residual, weight)
    width = x.shape[-1]
    heads = 1 if x.ndim == 2 else x.shape[1]
    rows = x.shape[0] * heads
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    constants, warps = _constants(width, plus_one=plus_one)
    rms_norm_kernel[(triton.cdiv(rows, constants["ROWS"]),)](
        x,
        residual,
        weight,
        out,
        rows,
        heads,
        width,
        x.stride(0),
        0 if x.ndim == 2 else x.stride(1),
        0 if residual is None else residual.stride(0),
        eps,
        **constants,
        num_warps=warps,
    )
    return out


def _check(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    check_dtype("x", x, *FLOATS)
    check_dtype("weight", weight, *FLOATS)
    check_shape("x", x, (None,) * max(2, min(x.ndim, 3)))
    check_shape("weight", weight, (x.shape[-1],))
    check_dense("x", x)
    check_dense("weight", weight)
    check_same_device(x=x, weight=weight, residual=residual)
    if x.shape[-1] > WIDEST:
        raise ShapeError(f"x is {x.shape[-1]} wide and should be at most {WIDEST}, what one program can hold")


def _constants(width: int, *, plus_one: bool) -> tuple[dict[str, int], int]:
    """Compile-time constants and warps: one row to a program, or several narrow ones."""
    block = triton.next_power_of_2(width)
    rows = max(1, TILE_ELEMENTS // block)
    warps = min(16, max(1, rows * block // ELEMENTS_PER_WARP))
    return {"PLUS_ONE": plus_one, "ROWS": rows, "BLOCK": block}, warps


def compile_cases() -> list[CompileCase]:
    """Hidden sizes with a residual, heads of Q and K without, and the widest row."""
    hidden = [_case(dtype, 4096, residual=True) for dtype in FLOATS]
    narrow = [_case(dtype, 128, residual=False) for dtype in (torch.bfloat16, torch.float16)]
    return [
        *hidden,
        *narrow,
        _case(torch.bfloat16, 2304, residual=True, plus_one=True),
        _case(torch.bfloat16, WIDEST, residual=True),
    ]


def _case(dtype: torch.dtype, width: int, *, residual: bool, plus_one: bool = False) -> CompileCase:
    kind, name = pointer(dtype), str(dtype).removeprefix("torch.")
    types = dict.fromkeys(("x", "weight", "out"), kind) | dict.fromkeys(("rows", "heads", "width"), "i32")
    types |= dict.fromkeys(("x_stride", "head_stride", "residual_stride"), "i32") | {"eps": "fp32"}
    constants, warps = _constants(width, plus_one=plus_one)
    absent = {} if residual else {"residual": None}
    return CompileCase(
        rms_norm_kernel,
        types | ({"residual": kind} if residual else {}),
        {**absent, **constants},
        warps,
        1,
        f"rms_norm[{width}, {name}{', residual' * residual}{', plus one' * plus_one}]",
        ("width", "x_stride", "head_stride", "residual_stride"),
    )
