"""Compiled CPU kernels against plain formulas in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.cpu import support
from torch import Tensor

if support.lacking():
    pytest.skip(f"compiled kernels: {support.lacking()}", allow_module_level=True)

from penstock_kernels.cpu.attention import attend, scratch_bytes
from penstock_kernels.cpu.packing import Int8, Plain, round_to_int8
from penstock_kernels.cpu.packing_e4m3 import Float8
from penstock_kernels.cpu.packing_few_bits import GROUP, FewBits, round_to_int4
from penstock_kernels.cpu.rows import norm_rows, turn_and_store
from penstock_kernels.cpu.workspace import Places, Workspace
from penstock_kernels.quant_rows import quantize_fp8

KINDS = (Plain, Int8, FewBits, Float8)
DTYPES = (torch.bfloat16, torch.float32)
TOLERANCE = {torch.bfloat16: 8e-3, torch.float32: 2e-6}  # of the largest number: one rounding of the answer
GATES: dict[str | None, Any] = {
    None: lambda y: y,
    "silu": lambda y: F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    "gelu_pytorch_tanh": lambda y: F.gelu(y.chunk(2, -1)[0], approximate="tanh") * y.chunk(2, -1)[1],
}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def unset(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


class TestLinear:
    @given(
        rows=st.integers(1, 20),
        width=st.sampled_from([1, 16, 31, 64, 65, 130]),
        columns=st.sampled_from([32, 64, 96, 160]),
        gate=st.sampled_from(list(GATES)),
        dtype=st.sampled_from(DTYPES),
        out_dtype=st.sampled_from(DTYPES),
        biased=st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_products(
        self, rows: int, width: int, columns: int, gate: Any, dtype: Any, out_dtype: Any, biased: bool
    ) -> None:
        outputs = 2 * width if gate else width
        weight, x = random(outputs, columns, dtype=dtype), random(rows, columns, dtype=dtype, seed=1)
        bias = random(outputs, dtype=dtype, seed=2) if biased else None
        for kind in KINDS:
            out = kind(weight, bias, gate=gate)(x, unset(rows, width, dtype=out_dtype))
            expected = GATES[gate](reference_product(kind, x, weight, bias))
            assert apart(out, expected) < max(TOLERANCE[out_dtype], 1e-4 if kind is not Plain else 1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_rows_numbers_are_its_own(self, kind: Any, dtype: torch.dtype) -> None:
        layer, x = kind(random(70, 256, dtype=dtype)), random(33, 256, dtype=dtype, seed=1)
        together = layer(x, unset(33, 70, dtype=torch.float32))
        for first, end in ((0, 1), (5, 7), (3, 16), (20, 33)):
            part = layer(x[first:end], unset(end - first, 70, dtype=torch.float32))
            assert torch.equal(part, together[first:end])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("poison", [torch.nan, torch.inf])
    def test_what_is_not_finite_stays_so_in_its_row(self, kind: Any, poison: float) -> None:
        x = random(3, 64)
        x[1, 7] = poison
        out = kind(random(64, 64))(x, unset(3, 64, dtype=torch.float32))
        assert not out[1].isfinite().any()
        assert out[[0, 2]].isfinite().all()

    @pytest.mark.parametrize("kind", KINDS[1:])
    def test_a_row_of_zeros_gives_the_bias(self, kind: Any) -> None:
        bias = random(64, seed=3)
        out = kind(random(64, 64), bias)(torch.zeros(2, 64), unset(2, 64, dtype=torch.float32))
        assert torch.equal(out, bias.expand(2, 64))

    def test_nothing_beyond_the_outputs_is_written(self) -> None:
        memory = unset(4, 100, dtype=torch.float32)
        Plain(random(70, 32))(random(4, 32, seed=1), memory[:, :70])
        assert memory[:, :70].isfinite().all()
        assert memory[:, 70:].isnan().all()


def reference_product(kind: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float64, with the rounding that `kind` stands for."""
    x, weight = x.double(), weight.float()
    if kind is Int8:
        codes, scales = round_to_int8(weight)
        weight, x = codes * scales[:, None], rounded(x)
    elif kind is FewBits:
        weight = round_to_int4(weight, GROUP).dequantize()
        x = rounded(x.unflatten(-1, (-1, GROUP))).flatten(-2)  # type: ignore[no-untyped-call]
    elif kind is Float8:
        (codes, scales), (x_codes, x_scales) = quantize_fp8(weight), quantize_fp8(x.float())
        weight, x = codes.float() * scales[:, None], x_codes.double() * x_scales[:, None]
    return x @ weight.double().T + (0 if bias is None else bias.double())


def rounded(x: Tensor) -> Tensor:
    """To whole multiples of a 127th of the largest in the last dimension, as float32 arithmetic finds them."""
    x = x.float()
    highest = x.abs().amax(-1, keepdim=True)
    steps = torch.full_like(highest, 127) / highest  # by a tensor: of a number torch multiplies the reciprocal
    return ((x * steps).round() * (highest * (1 / 127))).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 37, 896])
def test_norm_with_residual(dtype: torch.dtype, width: int) -> None:
    x, residual, weight = random(5, width, dtype=dtype), random(5, width, dtype=dtype, seed=1), random(width, seed=2)
    numbers, out, before = torch.tensor([1e-6, 1 / width]), unset(5, width, dtype=dtype), residual.clone()
    norm_rows(
        x.itemsize,
        5,
        width,
        x.data_ptr(),
        width * x.itemsize,
        residual.data_ptr(),
        weight.data_ptr(),
        numbers.data_ptr(),
        out.data_ptr(),
    )
    assert torch.equal(residual, x + before)
    assert apart(out, F.rms_norm(residual.double(), (width,), weight.double(), 1e-6)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dims", "pairs"), [(16, 8), (40, 16), (64, 32)])
@pytest.mark.parametrize("normed", [0, 1])
def test_heads_are_turned_on_their_way_into_the_pool(dtype: torch.dtype, dims: int, pairs: int, normed: int) -> None:
    heads, kv_heads, positions = 6, 2, np.array([0, 9, 4])
    qkv = random(3, heads + 2 * kv_heads, dims, dtype=dtype)
    cos, sin = random(16, pairs, dtype=dtype, seed=1), random(16, pairs, dtype=dtype, seed=2)
    weight = random(2, dims, seed=3) if normed else torch.ones(2, dims)
    pool, slots, numbers = (
        unset(12, 2 * kv_heads, dims, dtype=dtype),
        np.array([5, 11, 2]),
        torch.tensor([1e-6, 1 / dims]),
    )
    given = qkv.clone()
    turn_and_store(
        qkv.itemsize,
        heads,
        kv_heads,
        dims,
        pairs,
        qkv.data_ptr(),
        normed,
        weight[0].data_ptr(),
        weight[1].data_ptr(),
        numbers.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        pool.data_ptr(),
        0,
        0,
        positions,
        slots,
    )

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        x = F.rms_norm(x.double(), (dims,), weight.double(), 1e-6) if normed else x.double()
        c, s = cos[positions].double()[:, None], sin[positions].double()[:, None]
        a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return torch.cat((a * c - b * s, b * c + a * s, rest), -1)

    assert apart(qkv[:, :heads], turned(given[:, :heads], weight[0])) < TOLERANCE[dtype]
    keys = given[:, heads : heads + kv_heads]
    assert apart(pool[slots, :kv_heads], turned(keys, weight[1])) < TOLERANCE[dtype]
    assert torch.equal(pool[slots, kv_heads:], given[:, heads + kv_heads :])
    untouched = np.setdiff1d(np.arange(12), slots)
    assert pool[untouched].isnan().all()


class TestAttention:
    """Three rows of twelve pages; what no token sees of the pool is NaN."""

    POSITIONS = (0, 100, 50, 51, 15, 16, 191)
    ROWS = (0, 1, 2, 2, 2, 2, 2)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("dims", "heads", "kv_heads"), [(64, 14, 2), (40, 6, 2), (128, 8, 8), (16, 5, 1)])
    @pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 5.0), (17, 5.0)])
    def test_it(self, dtype: Any, dims: int, heads: int, kv_heads: int, window: int, softcap: float) -> None:
        pool, pages = self.pool(dtype, dims, kv_heads)
        q = random(len(self.ROWS), heads, dims, dtype=dtype, seed=1)
        out = self.attend(q, pool, pages, kv_heads, window, softcap)
        for token, (row, position) in enumerate(zip(self.ROWS, self.POSITIONS, strict=True)):
            first = max(0, position + 1 - window) if window else 0
            kv = pool[torch.from_numpy(pages[row]).long()].flatten(0, 1)[first : position + 1].double()
            k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in kv.chunk(2, 1))
            scores = torch.einsum("hd,shd->hs", q[token].double(), k) * dims**-0.5
            scores = torch.tanh(scores / softcap) * softcap if softcap else scores
            expected = torch.einsum("hs,shd->hd", scores.softmax(-1), v)
            assert apart(out[token], expected) < TOLERANCE[dtype]

    def test_threads_and_neighbours_change_nothing(self) -> None:
        pool, pages = self.pool(torch.bfloat16, 64, 2)
        q = random(len(self.ROWS), 8, 64, dtype=torch.bfloat16, seed=1)
        together = self.attend(q, pool, pages, 2, threads=1)
        assert torch.equal(self.attend(q, pool, pages, 2, threads=3), together)
        assert torch.equal(self.attend(q[4:5], pool, pages, 2, only=slice(4, 5)), together[4:5])

    def pool(self, dtype: torch.dtype, dims: int, kv_heads: int) -> tuple[Tensor, Any]:
        pages = np.random.default_rng(0).permutation(40)[:36].reshape(3, 12).astype(np.int32)
        pool = unset(40, 16, 2 * kv_heads, dims, dtype=dtype)
        for row, positions in ((0, 1), (1, 101), (2, 192)):
            for position in range(positions):
                place = pages[row, position // 16], position % 16
                pool[place] = random(2 * kv_heads, dims, dtype=dtype, seed=1000 * row + position)
        return pool, pages

    def attend(
        self,
        q: Tensor,
        pool: Tensor,
        pages: Any,
        kv_heads: int,
        window: int = 0,
        softcap: float = 0.0,
        threads: int = 2,
        only: slice = slice(None),
    ) -> Tensor:
        _, heads, dims = q.shape
        context, stride = 208, heads * dims * q.itemsize
        numbers, out = torch.tensor([dims**-0.5, softcap]), unset(*q.shape, dtype=q.dtype)
        scratch = unset(threads * scratch_bytes(heads, kv_heads, dims, context) // 4, dtype=torch.float32)
        places = pages, np.array(self.ROWS)[only], np.array(self.POSITIONS)[only]
        attend(
            threads,
            q.itemsize,
            heads,
            kv_heads,
            dims,
            q.data_ptr(),
            stride,
            pool.data_ptr(),
            16,
            window,
            int(softcap > 0),
            numbers.data_ptr(),
            scratch.data_ptr(),
            context,
            out.data_ptr(),
            stride,
            0,
            0,
            *places,
        )
        return out


def test_a_program_does_again_what_was_recorded() -> None:
    space = Workspace()
    first = Int8(random(64, 32), gate=None, space=space)
    second = Plain(random(32, 64, seed=1), space=space)
    x, middle, out = random(5, 32, seed=2), unset(5, 64, dtype=torch.float32), unset(5, 32, dtype=torch.float32)
    space.place(Places(np.zeros((1, 1), np.int32), *[np.zeros(1, np.int64)] * 3))
    with space.recorded() as programs:
        second(first(x, middle), out)
    expected, _ = out.clone(), x.mul_(2)
    space.run(programs[0])
    assert torch.allclose(out, 2 * expected, rtol=1e-5)
    assert not torch.equal(out, expected)
