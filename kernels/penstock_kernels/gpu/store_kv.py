"""Writing K and V into the paged pool, quantizing them on the way where the pool is of 8 bits.

A row is one head of one token, of K or V; a program writes a tile of rows. Bytes moved are those of `kv`, read, and of
its place in the pool, written: nothing is read twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.gpu.cases import CompileCase, pointer
from penstock_kernels.kv import LARGEST
from penstock_kernels.store_kv import check_store_kv

TILE_ELEMENTS = 4096  # 4 warps with 32 elements to a thread: four 16-byte loads of 16-bit numbers in flight
WARPS = 4


def store_kv(pool: Tensor, slots: Tensor, kv: Tensor, scales: Tensor | None = None) -> None:
    """As `penstock_kernels.store_kv.store_kv`."""
    check_store_kv(pool, slots, kv, scales)
    tokens, heads, head_dim = kv.shape
    if tokens == 0:
        return
    constants = _constants(heads, head_dim, pool.dtype, quantized=scales is not None)
    grid = (triton.cdiv(tokens * heads, constants["BLOCK_ROWS"]),)
    store_kv_kernel[grid](
        pool, slots, kv, scales, tokens * heads, pool.stride(0), kv.stride(0), **constants, num_warps=WARPS
    )


def _constants(heads: int, head_dim: int, dtype: torch.dtype, *, quantized: bool) -> dict[str, int | float | bool]:
    dim_pad = triton.next_power_of_2(head_dim)
    return {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "DIM_PAD": dim_pad,
        "BLOCK_ROWS": max(1, TILE_ELEMENTS // dim_pad),
        "QUANTIZED": quantized,
        "LARGEST": LARGEST.get(dtype, 0.0),
    }


@triton.jit(do_not_specialize=("rows",))
def store_kv_kernel(
    pool,
    slots,
    kv,
    scales,
    rows,
    pool_stride,
    kv_stride,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    LARGEST: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token, head = row // HEADS, row % HEADS
    real = row < rows
    dims = tl.arange(0, DIM_PAD)
    mask = real[:, None] & (dims < HEAD_DIM)[None, :]
    slot = tl.load(slots + token, mask=real, other=0).to(tl.int64)
    source = kv + token.to(tl.int64) * kv_stride + head * HEAD_DIM
    target = pool + slot * pool_stride + head * HEAD_DIM
    x = tl.load(source[:, None] + dims[None, :], mask=mask, other=0.0)
    if QUANTIZED:
        x = x.to(tl.float32)
        divisor = head_divisor(peak_of(x), LARGEST, scales.dtype.element_ty)
        x = in_8_bits(x, divisor, LARGEST, pool.dtype.element_ty)
        tl.store((scales + slot * HEADS + head)[:, None], divisor.to(scales.dtype.element_ty), mask=real[:, None])
    tl.store(target[:, None] + dims[None, :], x.to(pool.dtype.element_ty), mask=mask)


@triton.jit
def peak_of(x):
    """The largest number of each row in size, [rows, 1]; infinite where one is not finite."""
    size = tl.abs(x)
    return tl.max(tl.where(size < float("inf"), size, float("inf")), axis=1, keep_dims=True)


@triton.jit
def head_divisor(peak, LARGEST: tl.constexpr, dtype: tl.constexpr):
    """The scale of heads with this `peak` as `dtype` keeps it, in float32; NaN where it is not finite."""
    scale = tl.math.div_rn(peak, tl.full(peak.shape, LARGEST, tl.float32)).to(dtype).to(tl.float32)
    return tl.where(scale < float("inf"), scale, float("nan"))


@triton.jit
def in_8_bits(x, divisor, LARGEST: tl.constexpr, dtype: tl.constexpr):
    """`x` [rows, width] over `divisor` [rows, 1], as `dtype` keeps it; zeros where that is zero or NaN."""
    usable = divisor > 0
    kept = tl.math.div_rn(x, tl.broadcast_to(tl.where(usable, divisor, 1.0), x.shape))
    kept = tl.where(usable, kept, 0.0)
    kept = tl.minimum(tl.maximum(kept, -LARGEST), LARGEST)
    return (round_half_even(kept) if dtype == tl.int8 else kept).to(dtype)


@triton.jit
def round_half_even(x):
    """`x`, of at most 2^22 in size, to a whole number: adding 1.5 * 2^23 leaves no bits for a fraction."""
    shift: tl.constexpr = 12582912.0
    return (x + shift) - shift


def compile_cases() -> list[CompileCase]:
    """A Llama-3.1-8B layer's K and V, plain and in 8 bits, and a head that is no power of two."""
    pools = [(dtype, dtype, None) for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    small = [(torch.bfloat16, dtype, torch.float16) for dtype in LARGEST]
    cases = [_case(128, kv, pool, scale) for kv, pool, scale in [*pools, *small]]
    return [*cases, _case(80, torch.bfloat16, torch.bfloat16, None)]


def _case(head_dim: int, kv: torch.dtype, pool: torch.dtype, scale: torch.dtype | None) -> CompileCase:
    constants = _constants(16, head_dim, pool, quantized=scale is not None)
    types = {"pool": pointer(pool), "slots": "*i64", "kv": pointer(kv), "rows": "i32"}
    types |= {"pool_stride": "i32", "kv_stride": "i32"}
    if scale is not None:
        types["scales"] = pointer(scale)
    return CompileCase(
        store_kv_kernel,
        types,
        {"scales": None, **constants} if scale is None else dict(constants),
        WARPS,
        1,
        f"store_kv[{head_dim}, {str(kv).removeprefix('torch.')} to {str(pool).removeprefix('torch.')}]",
        ("pool_stride", "kv_stride"),
    )
