"""Rows of a table by their index: each wanted row is read once and written once. Shapes: `penstock_kernels.rows`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.gpu.cases import CompileCase, pointer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 2048  # 16 elements to a thread: two 16-byte loads of 16-bit numbers in flight
WARPS = 4


@triton.jit
def take_rows_kernel(table, indices, out, width, stride, scale, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    row = tl.load(indices + at).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    values = tl.load(table + row * stride + column, mask, 0.0)
    if SCALED:
        values = (values.to(tl.float32) * scale).to(values.dtype)
    tl.store(out + at * width + column, values, mask)


def take_rows(table: Tensor, indices: Tensor, scale: float = 1.0) -> Tensor:
    """As `penstock_kernels.rows.take_rows`."""
    check_shape("table", table, (None, None))
    check_shape("indices", indices, (None,))
    check_dtype("table", table, *FLOATS)
    check_dtype("indices", indices, torch.int64, torch.int32)
    check_dense("table", table)
    check_dense("indices", indices)
    check_same_device(table=table, indices=indices)
    count, width = len(indices), table.shape[1]
    out = torch.empty(count, width, dtype=table.dtype, device=table.device)
    if out.numel():
        grid = (count, triton.cdiv(width, BLOCK))
        take_rows_kernel[grid](
            table, indices, out, width, table.stride(0), scale, SCALED=scale != 1.0, BLOCK=BLOCK, num_warps=WARPS
        )
    return out


def compile_cases() -> list[CompileCase]:
    """Plain in each dtype, and scaled as Gemma does."""
    return [*(_case(dtype, scaled=False) for dtype in FLOATS), _case(torch.bfloat16, scaled=True)]


def _case(dtype: torch.dtype, *, scaled: bool) -> CompileCase:
    kind, name = pointer(dtype), str(dtype).removeprefix("torch.")
    types = {"table": kind, "indices": "*i64", "out": kind, "width": "i32", "stride": "i32", "scale": "fp32"}
    constants: dict[str, object] = {"SCALED": scaled, "BLOCK": BLOCK}
    label = f"take_rows[{name}{', scaled' * scaled}]"
    return CompileCase(take_rows_kernel, types, constants, WARPS, 1, label, ("width", "stride"))
