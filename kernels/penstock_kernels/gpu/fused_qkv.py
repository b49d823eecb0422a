"""Norms of the heads, rotation and the write into the pool, in one pass over Q, K and V.

A program takes a tile of one token's heads. Each pair of dimensions that is turned together is read and written by the
same thread, so Q is replaced in place without a barrier. Bytes: `qkv` is read once; Q goes back, K and V go to the
pool. As three kernels, norm, rotation and store would read and write K three times. For a pool of 8 bits a head's
largest number is found while it lies in registers. Shapes: `penstock_kernels.fused_qkv`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dense, check_dtype, check_same_device, check_shape
from penstock_kernels.fused_qkv import HeadNorms
from penstock_kernels.gpu.cases import CompileCase, pointer
from penstock_kernels.gpu.rotary import check_tables, turn
from penstock_kernels.gpu.store_kv import head_divisor, in_8_bits, peak_of
from penstock_kernels.kv import LARGEST, SCALE_DTYPES

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TILE_ELEMENTS = 2048
WARPS = 4


@triton.jit
def head_factor(q_weight, k_weight, dim, mask, is_q, PLUS_ONE: tl.constexpr):
    """The norm's factor of each dimension: Q's weight in Q's heads, K's in the others."""
    factor = tl.where(is_q, tl.load(q_weight + dim, mask, 0.0), tl.load(k_weight + dim, mask, 0.0)).to(tl.float32)
    return factor + 1.0 if PLUS_ONE else factor


@triton.jit
def put(qkv, pool, dim, values, divisor, mask, is_q, stored, LARGEST: tl.constexpr):
    """Q's heads back to where they were, K's and V's into the token's slot."""
    tl.store(qkv + dim, values, mask & is_q)
    if LARGEST > 0:
        values = in_8_bits(values.to(tl.float32), divisor, LARGEST, pool.dtype.element_ty)
    tl.store(pool + dim, values, mask & stored)


@triton.jit
def norm_rotary_store_kernel(
    qkv,
    positions,
    cos,
    sin,
    pool,
    scales,
    slots,
    q_weight,
    k_weight,
    eps,
    stored_tokens,
    heads,
    kv_heads,
    half,
    qkv_stride,
    pool_stride,
    HEAD_DIM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """`half` pairs of a head's dimensions are turned; REST_BLOCK, where not 0, covers the dimensions after them.

    LARGEST, where not 0, is what a pool of 8 bits holds at most.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair, rest = tl.arange(0, HALF_BLOCK)[None, :], 2 * half
    is_q, is_v, real = head < heads, head >= heads + kv_heads, head < heads + 2 * kv_heads
    last_stored = tl.where(token < stored_tokens, heads + 2 * kv_heads, heads)
    stored = (head >= heads) & (head < last_stored)
    slot = tl.load(slots + token, token < stored_tokens, 0).to(tl.int64)
    source = qkv + token * qkv_stride + head * HEAD_DIM
    target = pool + slot * pool_stride + (head - heads) * HEAD_DIM

    in_pair = pair < half
    first = tl.load(source + pair, real & in_pair, 0.0).to(tl.float32)
    second = tl.load(source + half + pair, real & in_pair, 0.0).to(tl.float32)
    if REST_BLOCK:
        other = rest + tl.arange(0, REST_BLOCK)[None, :]
        in_rest = other < HEAD_DIM
        last = tl.load(source + other, real & in_rest, 0.0).to(tl.float32)

    if q_weight is not None:
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
        if REST_BLOCK:
            squares += tl.sum(last * last, axis=1, keep_dims=True)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)
        first_factor = head_factor(q_weight, k_weight, pair, in_pair, is_q, PLUS_ONE)
        second_factor = head_factor(q_weight, k_weight, half + pair, in_pair, is_q, PLUS_ONE)
        first = tl.where(is_v, first, first * scale * first_factor)
        second = tl.where(is_v, second, second * scale * second_factor)
        if REST_BLOCK:
            rest_factor = head_factor(q_weight, k_weight, other, in_rest, is_q, PLUS_ONE)
            last = tl.where(is_v, last, last * scale * rest_factor)

    row = tl.load(positions + token).to(tl.int64) * half
    cosine = tl.load(cos + row + pair, in_pair, 0.0).to(tl.float32)
    sine = tl.load(sin + row + pair, in_pair, 0.0).to(tl.float32)
    turned_first, turned_second = turn(first, second, cosine, sine)
    dtype: tl.constexpr = qkv.dtype.element_ty
    first = tl.where(is_v, first, turned_first).to(dtype)
    second = tl.where(is_v, second, turned_second).to(dtype)
    divisor = None
    if LARGEST > 0:
        peak = tl.maximum(peak_of(first.to(tl.float32)), peak_of(second.to(tl.float32)))
        if REST_BLOCK:
            peak = tl.maximum(peak, peak_of(last.to(dtype).to(tl.float32)))
        divisor = head_divisor(peak, LARGEST, scales.dtype.element_ty)
        scale_at = scales + slot * (2 * kv_heads) + head - heads
        tl.store(scale_at, divisor.to(scales.dtype.element_ty), stored)
    put(source, target, pair, first, divisor, real & in_pair, is_q, stored, LARGEST)
    put(source, target, half + pair, second, divisor, real & in_pair, is_q, stored, LARGEST)
    if REST_BLOCK:
        put(source, target, other, last.to(dtype), divisor, real & in_rest, is_q, stored, LARGEST)


def norm_rotary_store(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: Tensor,
    slots: Tensor,
    *,
    heads: int,
    norms: HeadNorms | None = None,
    scales: Tensor | None = None,
) -> None:
    """As `penstock_kernels.fused_qkv.norm_rotary_store`; positions and slots are not checked against their tables."""
    _check(qkv, positions, cos, sin, pool, slots, heads, norms, scales)
    tokens, all_heads, head_dim = qkv.shape
    if tokens == 0:
        return
    half = cos.shape[-1]
    plus_one, largest = norms is not None and norms.plus_one, LARGEST[pool.dtype] if scales is not None else 0.0
    constants = _constants(all_heads, head_dim, half, plus_one=plus_one, largest=largest)
    norm_rotary_store_kernel[(tokens, triton.cdiv(all_heads, constants["HEADS"]))](
        qkv,
        positions,
        cos,
        sin,
        pool,
        scales,
        slots,
        norms.q_weight if norms else None,
        norms.k_weight if norms else None,
        norms.eps if norms else 0.0,
        len(slots),
        heads,
        (all_heads - heads) // 2,
        half,
        qkv.stride(0),
        pool.stride(0),
        **constants,
        num_warps=WARPS,
    )


def _check(
    qkv: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: Tensor,
    slots: Tensor,
    heads: int,
    norms: HeadNorms | None,
    scales: Tensor | None,
) -> None:
    check_shape("qkv", qkv, (None, None, None))
    check_dtype("qkv", qkv, *FLOATS)
    check_dense("qkv", qkv, 2)
    tokens, all_heads, head_dim = qkv.shape
    if not 0 < heads < all_heads or (all_heads - heads) % 2:
        raise ShapeError(f"heads is {heads} of {all_heads} and should leave as many K heads as V heads")
    check_shape("positions", positions, (tokens,))
    check_dtype("positions", positions, torch.int64, torch.int32)
    check_dense("positions", positions)
    check_tables(cos, sin)
    if 2 * cos.shape[-1] > head_dim:
        raise ShapeError(f"cos turns {2 * cos.shape[-1]} dimensions and should turn at most {head_dim}, a whole head")
    _check_pool(qkv, pool, heads, scales)
    _check_slots(slots, tokens)
    if norms is not None:
        _check_norms(norms, head_dim)
    check_same_device(qkv=qkv, positions=positions, cos=cos, sin=sin, pool=pool, slots=slots, scales=scales)


def _check_pool(qkv: Tensor, pool: Tensor, heads: int, scales: Tensor | None) -> None:
    stored = qkv.shape[1] - heads
    check_shape("pool", pool, (None, stored, qkv.shape[2]))
    check_dense("pool", pool, 2)
    if scales is None:
        check_dtype("pool", pool, qkv.dtype)
        return
    check_dtype("pool", pool, *LARGEST)
    check_dtype("scales", scales, *SCALE_DTYPES)
    check_shape("scales", scales, (pool.shape[0], stored))
    check_dense("scales", scales, 2)


def _check_slots(slots: Tensor, tokens: int) -> None:
    check_shape("slots", slots, (None,))
    check_dtype("slots", slots, torch.int64, torch.int32)
    check_dense("slots", slots)
    if len(slots) > tokens:
        raise ShapeError(f"slots has {len(slots)} entries and should have at most {tokens}, one for each token")


def _check_norms(norms: HeadNorms, head_dim: int) -> None:
    for name, weight in (("q_weight", norms.q_weight), ("k_weight", norms.k_weight)):
        check_shape(name, weight, (head_dim,))
        check_dtype(name, weight, *FLOATS)
        check_dense(name, weight)


def _constants(
    all_heads: int, head_dim: int, half: int, *, plus_one: bool, largest: float = 0.0
) -> dict[str, int | float]:
    half_block = triton.next_power_of_2(half)
    rest = head_dim - 2 * half
    heads = max(1, min(triton.next_power_of_2(all_heads), TILE_ELEMENTS // triton.next_power_of_2(head_dim)))
    return {
        "HEAD_DIM": head_dim,
        "PLUS_ONE": plus_one,
        "HEADS": heads,
        "HALF_BLOCK": half_block,
        "REST_BLOCK": triton.next_power_of_2(rest) if rest else 0,
        "LARGEST": largest,
    }


def compile_cases() -> list[CompileCase]:
    """Llama (no norms) in each dtype and into 8 bits, Qwen3, Gemma 3, and a model that turns half of each head."""
    llama = [_case(dtype, 128, 64, norms=False) for dtype in FLOATS]
    qwen = _case(torch.bfloat16, 128, 64, norms=True)
    gemma = _case(torch.bfloat16, 256, 128, norms=True, plus_one=True)
    small = [_case(torch.bfloat16, 128, 64, norms=norms, pool=pool) for pool in LARGEST for norms in (False, True)]
    return [*llama, qwen, gemma, _case(torch.bfloat16, 128, 32, norms=True), *small]


def _case(
    dtype: torch.dtype,
    head_dim: int,
    half: int,
    *,
    norms: bool,
    plus_one: bool = False,
    pool: torch.dtype | None = None,
) -> CompileCase:
    kind, name = pointer(dtype), str(dtype).removeprefix("torch.")
    types = dict.fromkeys(("qkv", "cos", "sin", "pool"), kind) | {"positions": "*i64", "slots": "*i64", "eps": "fp32"}
    if norms:
        types |= {"q_weight": kind, "k_weight": kind}
    integers = ("stored_tokens", "heads", "kv_heads", "half", "qkv_stride", "pool_stride")
    absent = {} if norms else {"q_weight": None, "k_weight": None}
    into = "" if pool is None else f", pool {str(pool).removeprefix('torch.')}"
    if pool is None:
        absent["scales"] = None
    else:
        types |= {"pool": pointer(pool), "scales": "*fp16"}
    return CompileCase(
        norm_rotary_store_kernel,
        types | dict.fromkeys(integers, "i32"),
        {**absent, **_constants(48, head_dim, half, plus_one=plus_one, largest=LARGEST[pool] if pool else 0.0)},
        WARPS,
        1,
        f"norm_rotary_store[{head_dim}, {2 * half} turned, {name}{into}{', norms' * norms}{', plus one' * plus_one}]",
        ("half", "qkv_stride", "pool_stride"),
    )
