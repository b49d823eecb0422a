"""Rotary position embedding in place: a program turns a tile of one token's heads.

Both halves of a pair are read and written by the same thread, so turning in place needs no barrier. Shapes are those
of `penstock_kernels.rotary`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TILE_ELEMENTS = 2048
WARPS = 4


@triton.jit
def turn(first, second, cos, sin):
    """The pairs (first, second) as complex numbers, multiplied by cos + i sin."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def rotary_kernel(
    x,
    positions,
    cos,
    sin,
    heads,
    half,
    x_stride,
    head_stride,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Without `positions` the tables' rows are the tokens'."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, BLOCK)[None, :]
    row = token if positions is None else tl.load(positions + token).to(tl.int64)
    cosine = tl.load(cos + row * half + dim, dim < half, 0.0).to(tl.float32)
    sine = tl.load(sin + row * half + dim, dim < half, 0.0).to(tl.float32)
    mask = (head < heads) & (dim < half)
    at = x + token * x_stride + head * head_stride + dim
    first = tl.load(at, mask, 0.0).to(tl.float32)
    second = tl.load(at + half, mask, 0.0).to(tl.float32)
    first, second = turn(first, second, cosine, sine)
    tl.store(at, first.to(x.dtype.element_ty), mask)
    tl.store(at + half, second.to(x.dtype.element_ty), mask)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `penstock_kernels.rotary.rotary`."""
    check_shape("cos", cos, (len(x), 1, None))
    _launch(x, None, cos, sin)


def rotary_at(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `penstock_kernels.rotary.rotary_at`; positions are not checked against the tables' length."""
    check_shape("positions", positions, (len(x),))
    check_dtype("positions", positions, torch.int64, torch.int32)
    check_dense("positions", positions)
    _launch(x, positions, cos, sin)


def _launch(x: Tensor, positions: Tensor | None, cos: Tensor, sin: Tensor) -> None:
    check_shape("x", x, (None, None, None))
    check_dtype("x", x, *FLOATS)
    check_dense("x", x)
    check_tables(cos, sin)
    check_same_device(x=x, positions=positions, cos=cos, sin=sin)
    tokens, heads, dims = x.shape
    half = cos.shape[-1]
    if dims != 2 * half:
        raise ShapeError(f"x has {dims} dimensions a head and should have {2 * half}, twice the tables' width")
    if x.numel() == 0:
        return
    constants = _constants(heads, half)
    grid = (tokens, triton.cdiv(heads, constants["HEADS"]))
    rotary_kernel[grid](x, positions, cos, sin, heads, half, x.stride(0), x.stride(1), **constants, num_warps=WARPS)


def check_tables(cos: Tensor, sin: Tensor) -> None:
    """Tables of angles: [rows, 1, half], dense, of one shape and type."""
    check_shape("cos", cos, (None, 1, None))
    check_shape("sin", sin, tuple(cos.shape))
    check_dtype("cos", cos, *FLOATS)
    check_dtype("sin", sin, cos.dtype)
    check_dense("cos", cos, 3)
    check_dense("sin", sin, 3)


def _constants(heads: int, half: int) -> dict[str, int]:
    block = triton.next_power_of_2(half)
    return {"HEADS": max(1, min(triton.next_power_of_2(heads), TILE_ELEMENTS // (2 * block))), "BLOCK": block}


def compile_cases() -> list[CompileCase]:
    """Llama-3.1-8B's 32 + 8 heads in each dtype, and a model that turns 48 of a head's dimensions."""
    return [*(_case(dtype, 40, 64) for dtype in FLOATS), _case(torch.bfloat16, 40, 24)]


def _case(dtype: torch.dtype, heads: int, half: int) -> CompileCase:
    kind, name = pointer(dtype), str(dtype).removeprefix("torch.")
    types = dict.fromkeys(("x", "cos", "sin"), kind) | {"positions": "*i64"}
    types |= dict.fromkeys(("heads", "half", "x_stride", "head_stride"), "i32")
    return CompileCase(
        rotary_kernel,
        types,
        dict(_constants(heads, half)),
        WARPS,
        1,
        f"rotary[{2 * half}, {name}]",
        ("x_stride", "head_stride") + ("half",) * (half % 16 == 0),
    )
