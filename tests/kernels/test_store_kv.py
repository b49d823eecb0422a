"""Storing K and V, plain and in 8 bits: the kernel in Triton's interpreter, and the reference against the formula.

The interpreter drops the carry when a float32 rounds up to the next power of two of a float8, so 8-bit floats are
stored here from numbers that they hold exactly.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.checks import ArgumentError, DtypeError, ShapeError
from penstock_kernels.gpu.store_kv import store_kv as kernel
from penstock_kernels.kv import LARGEST, dequantize_heads, quantize_heads
from penstock_kernels.store_kv import store_kv as reference
from torch import Tensor

SLOTS = 160


def random_kv(tokens: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A view into rows that hold queries too."""
    rows = torch.randn(tokens, heads + 3, head_dim, generator=torch.Generator().manual_seed(seed))
    return rows.to(dtype)[:, 3:]


def slots_for(tokens: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(SLOTS, generator=torch.Generator().manual_seed(tokens))[:tokens].to(dtype)


def stored(store: object, kv: Tensor, pool_dtype: torch.dtype, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A pool, of -7 wherever nothing was stored, and its scales."""
    assert callable(store)
    pool = torch.full((SLOTS, *kv.shape[1:]), -7.0).to(pool_dtype)
    scales = torch.full(pool.shape[:2], torch.nan, dtype=scale_dtype)
    store(pool, slots_for(len(kv)), kv, scales if pool_dtype in LARGEST else None)
    return pool, scales


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 2, 16), (17, 6, 20), (129, 2, 128)])
def test_the_kernel_writes_its_slots_and_no_other(
    tokens: int, heads: int, head_dim: int, dtype: torch.dtype, slot_dtype: torch.dtype
) -> None:
    kv, slots = random_kv(tokens, heads, head_dim, dtype), slots_for(tokens, slot_dtype)
    pool = torch.full((SLOTS, heads, head_dim), torch.nan, dtype=dtype)
    kernel(pool, slots, kv)
    expected = torch.full_like(pool, torch.nan)
    expected[slots.long()] = kv
    torch.testing.assert_close(pool, expected, rtol=0, atol=0, equal_nan=True)


@given(tokens=st.integers(1, 20), heads=st.integers(1, 5), head_dim=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_the_kernel_quantizes_as_the_reference_does(
    tokens: int, heads: int, head_dim: int, seed: int, scale_dtype: torch.dtype
) -> None:
    kv = random_kv(tokens, heads, head_dim, seed=seed)
    same(stored(kernel, kv, torch.int8, scale_dtype), stored(reference, kv, torch.int8, scale_dtype))


def test_the_kernel_keeps_8_bit_floats() -> None:
    kv = random_kv(17, 4, 20).to(torch.float8_e4m3fn).float()
    kv[..., 0] = 448.0  # so that scales are powers of two, and nothing is rounded
    kv *= torch.exp2(torch.arange(4.0))[:, None]
    got = stored(kernel, kv, torch.float8_e4m3fn, torch.float16)
    same(got, stored(reference, kv, torch.float8_e4m3fn, torch.float16))
    assert torch.equal(dequantize_heads(*got)[slots_for(17)], kv)


@pytest.mark.parametrize("store", [kernel, reference])
@pytest.mark.parametrize("pool_dtype", LARGEST)
def test_zeros_stay_zero_and_what_is_not_finite_stays_so(store: object, pool_dtype: torch.dtype) -> None:
    kv = random_kv(5, 2, 16)
    kv[1] = 0
    kv[2, 0, 3], kv[3, 1, 4], kv[4, 0, 5] = torch.nan, torch.inf, -torch.inf
    kept = dequantize_heads(*stored(store, kv, pool_dtype, torch.float16))[slots_for(5)]
    assert not kept[1].any()
    for token, head in ((2, 0), (3, 1), (4, 0)):
        assert kept[token, head].isnan().all()
        assert kept[token, 1 - head].isfinite().all()


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_int8_is_off_by_half_a_step_at_most(scale_dtype: torch.dtype) -> None:
    x = random_kv(33, 4, 64)
    quantized, scales = quantize_heads(x, torch.int8, scale_dtype)
    assert ((dequantize_heads(quantized, scales) - x).abs() <= scales.float()[..., None] * 0.501).all()
    assert (quantized.abs().amax(-1) == 127).all()


def test_int8_rounds_half_to_even() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -2.5]).expand(1, 1, 6).contiguous()
    expected = [127, 0, 2, 2, 0, -2]
    for store in (kernel, reference):
        pool, _ = stored(store, x, torch.int8, torch.float32)
        assert pool[slots_for(1)].flatten().tolist() == expected


def test_8_bit_floats_are_off_by_a_sixteenth_at_most() -> None:
    x = random_kv(33, 4, 64)
    quantized, scales = quantize_heads(x, torch.float8_e4m3fn, torch.float32)
    off = (dequantize_heads(quantized, scales) - x).abs()
    assert (off <= x.abs() / 16 + scales[..., None] * 2**-10).all()


def test_a_head_too_small_for_its_scale_is_stored_as_zeros() -> None:
    kv = torch.full((1, 2, 16), 1e-9)
    for store in (kernel, reference):
        pool, scales = stored(store, kv, torch.int8, torch.float16)
        assert not pool[slots_for(1)].any()
        assert not scales[slots_for(1)].any()


@pytest.mark.parametrize(
    ("named", "error", "change"),
    [
        ("slots", ShapeError, {"slots": torch.zeros(2, dtype=torch.int64)}),
        ("slots", DtypeError, {"slots": torch.zeros(3)}),
        ("pool", DtypeError, {"pool": torch.zeros(9, 2, 16, dtype=torch.float16)}),
        ("pool", DtypeError, {"scales": torch.zeros(9, 2)}),
        ("pool", ShapeError, {"pool": torch.zeros(9, 4, 16)}),
        ("kv", ShapeError, {"kv": torch.zeros(3, 2, 32)[..., ::2]}),
        ("scales", DtypeError, {"pool": torch.zeros(9, 2, 16, dtype=torch.int8), "scales": torch.zeros(9, 2).double()}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    named: str, error: type[ArgumentError], change: dict[str, Tensor]
) -> None:
    fits = {"pool": torch.zeros(9, 2, 16), "slots": slots_for(3), "kv": torch.zeros(3, 2, 16)}
    with pytest.raises(error, match=named):
        kernel(**{**fits, **change})


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)
