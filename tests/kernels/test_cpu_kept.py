"""K and V in 8 bits in a CPU's pool: stored as `kv` defines, and attended to as what they stand for."""

from typing import Any

import numpy as np
import pytest
import torch
from penstock_kernels.cpu import support
from penstock_kernels.kv import dequantize_heads, quantize_heads
from torch import Tensor

if support.lacking():
    pytest.skip(f"compiled kernels: {support.lacking()}", allow_module_level=True)

from penstock_kernels.cpu.attention import attend, scratch_bytes
from penstock_kernels.cpu.rounding import E4M3, INT8
from penstock_kernels.cpu.rows import turn_and_store

from tests.kernels.test_cpu_kernels import DTYPES, TOLERANCE, apart, random, unset

KEPT = [pytest.param(INT8, torch.int8, id="int8"), pytest.param(E4M3, torch.float8_e4m3fn, id="fp8")]
PAGE, PAGES, CONTEXT = 16, 9, 48


class Pool:
    """Of 8 bits, and its scales, which are NaN where nothing was stored."""

    def __init__(self, kept: int, dtype: torch.dtype, kv_heads: int, dims: int) -> None:
        self.kept, self.kv_heads, self.dims = kept, kv_heads, dims
        self.codes = torch.full((PAGES * PAGE, 2 * kv_heads, dims), 0x7F, dtype=torch.int8).view(dtype)
        self.scales = torch.full(self.codes.shape[:2], torch.nan, dtype=torch.float16)

    def store(self, qkv: Tensor, slots: np.ndarray[Any, Any], heads: int) -> None:
        """Without norms, turned by nothing."""
        ones, zeros = torch.ones(1, self.dims // 2).to(qkv.dtype), torch.zeros(1, self.dims // 2).to(qkv.dtype)
        weight, numbers = torch.ones(self.dims), torch.zeros(2)
        turn_and_store(
            qkv.itemsize,
            heads,
            self.kv_heads,
            self.dims,
            self.dims // 2,
            qkv.data_ptr(),
            0,
            weight.data_ptr(),
            weight.data_ptr(),
            numbers.data_ptr(),
            ones.data_ptr(),
            zeros.data_ptr(),
            self.codes.data_ptr(),
            self.kept,
            self.scales.data_ptr(),
            np.zeros(len(slots), np.int64),
            slots,
        )

    def attend(self, q: Tensor, table: Any, positions: list[int], window: int, softcap: float, threads: int) -> Tensor:
        _, heads, dims = q.shape
        numbers, out = torch.tensor([dims**-0.5, softcap]), unset(*q.shape, dtype=q.dtype)
        scratch = unset(threads * scratch_bytes(heads, self.kv_heads, dims, CONTEXT) // 4, dtype=torch.float32)
        attend(
            threads,
            q.itemsize,
            heads,
            self.kv_heads,
            dims,
            q.data_ptr(),
            heads * dims * q.itemsize,
            self.codes.data_ptr(),
            PAGE,
            window,
            int(softcap > 0),
            numbers.data_ptr(),
            scratch.data_ptr(),
            CONTEXT,
            out.data_ptr(),
            heads * dims * q.itemsize,
            self.kept,
            self.scales.data_ptr(),
            table,
            np.zeros(len(q), np.int64),
            np.array(positions),
        )
        return out


@pytest.mark.parametrize(("kept", "dtype"), KEPT)
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dims", [16, 40, 128])
def test_heads_are_stored_to_the_bit_as_they_are_defined(
    kept: int, dtype: torch.dtype, given: torch.dtype, dims: int
) -> None:
    """Large and small heads, zeros, one too small for its scale, and ones that are not finite."""
    kv_heads, heads, slots = 3, 2, np.array([5, 143, 17, 40, 8])
    qkv = random(5, heads + 2 * kv_heads, dims) * torch.logspace(-3, 3, 5)[:, None, None]
    qkv[1, heads + 1] = 0
    qkv[2, heads] *= 1e-9
    qkv[3, heads + 3, 7], qkv[3, heads + 4, 2], qkv[4, heads + 1, 0] = torch.nan, torch.inf, 5e8
    qkv = qkv.to(given)
    pool = Pool(kept, dtype, kv_heads, dims)
    codes, scales = quantize_heads(qkv[:, heads:], dtype, torch.float16)
    pool.store(qkv, slots, heads)
    finite = scales.isfinite()
    assert finite.sum() == 5 * 2 * kv_heads - 3
    assert torch.equal(pool.scales[slots].nan_to_num(-1), scales.nan_to_num(-1))
    assert torch.equal(pool.codes[slots].float()[finite], codes.float()[finite])
    untouched = np.setdiff1d(np.arange(PAGES * PAGE), slots)
    assert pool.scales[untouched].isnan().all()
    assert (pool.codes[untouched].view(torch.int8) == 0x7F).all()


@pytest.mark.parametrize(("kept", "dtype"), KEPT)
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize(("dims", "heads", "kv_heads"), [(64, 14, 2), (40, 6, 2), (128, 4, 4)])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (7, 5.0)])
def test_attention(
    kept: int,
    dtype: torch.dtype,
    given: torch.dtype,
    dims: int,
    heads: int,
    kv_heads: int,
    window: int,
    softcap: float,
) -> None:
    """What no token sees has codes and scales of NaN."""
    table, positions = np.array([[4, 2, 7]], np.int32), [0, 15, 16, 40]
    pool, length = Pool(kept, dtype, kv_heads, dims), 41
    slots = np.array([int(table[0, at // PAGE]) * PAGE + at % PAGE for at in range(length)])
    pool.store(random(length, 2 * kv_heads, dims, dtype=given), slots, 0)
    q = random(len(positions), heads, dims, dtype=given, seed=1)
    found = pool.attend(q, table, positions, window, softcap, threads=2)
    restored = dequantize_heads(pool.codes, pool.scales)[slots].double()
    for token, position in enumerate(positions):
        first = max(0, position + 1 - window) if window else 0
        kv = restored[first : position + 1]
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in kv.chunk(2, 1))
        scores = torch.einsum("hd,shd->hs", q[token].double(), k) * dims**-0.5
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        assert apart(found[token], torch.einsum("hs,shd->hd", scores.softmax(-1), v)) < TOLERANCE[given]
    assert torch.equal(pool.attend(q, table, positions, window, softcap, threads=1), found)


@pytest.mark.parametrize("side", [0, 2])
@pytest.mark.parametrize(("kept", "dtype"), KEPT)
def test_a_wrong_scale_is_seen(kept: int, dtype: torch.dtype, side: int) -> None:
    table, slots = np.array([[3]], np.int32), np.arange(3 * PAGE, 3 * PAGE + 5)
    pool = Pool(kept, dtype, 2, 64)
    pool.store(random(5, 4, 64), slots, 0)
    q = random(1, 4, 64, seed=1)
    right = pool.attend(q, table, [4], 0, 0.0, 1)
    pool.scales[slots[2], side] *= 1.25
    assert apart(pool.attend(q, table, [4], 0, 0.0, 1), right) > 1e-3
