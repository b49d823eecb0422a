"""Gated activations in one pass: gate and up are read once, the product written once.

Shapes are those of `penstock_kernels.activations`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 2048  # 16 elements to a thread: two 16-byte loads of 16-bit numbers in flight for gate and for up
WARPS = 4


@triton.jit
def gated_kernel(gate_up, out, width, stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """gelu's tanh form is `x * sigmoid(2 u)`: tanh(u) = 2 * sigmoid(2 u) - 1."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate = tl.load(gate_up + row * stride + column, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask, 0.0).to(tl.float32)
    steep = gate
    if GELU:
        steep = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 * sqrt(2 / pi)
    tl.store(out + row * width + column, (gate * tl.sigmoid(steep) * up).to(out.dtype.element_ty), mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    """As `penstock_kernels.activations.silu_mul`."""
    return _launch(gate_up, gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """As `penstock_kernels.activations.gelu_mul`."""
    return _launch(gate_up, gelu=True)


def _launch(gate_up: Tensor, *, gelu: bool) -> Tensor:
    check_shape("gate_up", gate_up, (None, None))
    check_dtype("gate_up", gate_up, *FLOATS)
    check_dense("gate_up", gate_up)
    tokens, doubled = gate_up.shape
    if doubled % 2:
        raise ShapeError(f"gate_up is {doubled} wide and should be of even width: gate, then up")
    width = doubled // 2
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        grid = (tokens, triton.cdiv(width, BLOCK))
        gated_kernel[grid](gate_up, out, width, gate_up.stride(0), GELU=gelu, BLOCK=BLOCK, num_warps=WARPS)
    return out


def compile_cases() -> list[CompileCase]:
    """Both gates in each dtype."""
    return [_case(dtype, gelu=gelu) for gelu in (False, True) for dtype in FLOATS]


def _case(dtype: torch.dtype, *, gelu: bool) -> CompileCase:
    kind, name = pointer(dtype), str(dtype).removeprefix("torch.")
    return CompileCase(
        gated_kernel,
        {"gate_up": kind, "out": kind, "width": "i32", "stride": "i32"},
        {"GELU": gelu, "BLOCK": BLOCK},
        WARPS,
        1,
        f"{'gelu' if gelu else 'silu'}_mul[{name}]",
        ("width", "stride"),
    )
