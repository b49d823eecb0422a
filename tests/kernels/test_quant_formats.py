"""Published 4-bit layouts against the compressed-tensors library and words packed by hand; the kernels' layout."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.checks import ShapeError
from penstock_kernels.quant_formats import (
    AWQ_ORDER,
    IN_ORDER,
    Int4Codes,
    from_awq,
    from_compressed_tensors,
    from_gptq,
    pack_nibbles,
    unpack_nibbles,
)
from penstock_kernels.quant_int4 import TILE, pack_int4, unpack_int4
from torch import Tensor

from tests.kernels.quant_cases import random, random_g_idx, random_int4, seeded

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def scheme(group: int, symmetric: bool) -> QuantizationScheme:
    weights = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=group)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def published_by_the_library(n: int, k: int, group: int, symmetric: bool) -> tuple[dict[str, Tensor], Tensor]:
    """(a layer's tensors as compressed-tensors saves them, the weights that it reads from them)."""
    state = {"weight": random(n, k), "weight_scale": 0.1 + random(n, k // group).abs()}
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-8, 8, (n, k // group), dtype=torch.int8, generator=seeded())
    saved = PackedQuantizationCompressor.compress(state, scheme(group, symmetric))
    return saved, PackedQuantizationCompressor.decompress(saved, scheme(group, symmetric))["weight"]


@FEW
@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), dim=st.sampled_from([0, 1]), order=st.permutations(IN_ORDER)
)
def test_nibbles_come_back(rows: int, columns: int, dim: int, order: list[int]) -> None:
    values = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=seeded(rows * columns))
    words = pack_nibbles(values, dim, tuple(order))
    assert words.shape[dim] == -(-values.shape[dim] // 8)
    assert torch.equal(unpack_nibbles(words, dim, values.shape[dim], tuple(order)), values)


def test_nibbles_by_hand() -> None:
    values = torch.arange(8, dtype=torch.uint8)[None]
    assert pack_nibbles(values, 1).item() == 0x76543210
    assert pack_nibbles(values, 1, AWQ_ORDER).item() == 0x75316420


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "k", "group"), [(16, 64, 32), (13, 96, 32), (24, 256, 128)])
def test_compressed_tensors(n: int, k: int, group: int, symmetric: bool) -> None:
    """Also rows that do not fill the last word of the zero points."""
    saved, weights = published_by_the_library(n, k, group, symmetric)
    read = from_compressed_tensors(
        saved["weight_packed"], saved["weight_scale"], (n, k), None if symmetric else saved["weight_zero_point"]
    )
    assert torch.equal(read.dequantize(), weights)


def test_packing_is_what_the_library_saves() -> None:
    saved, _ = published_by_the_library(16, 64, 32, symmetric=False)
    read = from_compressed_tensors(saved["weight_packed"], saved["weight_scale"], (16, 64), saved["weight_zero_point"])
    assert torch.equal(pack_nibbles(read.codes, 1), saved["weight_packed"])
    assert torch.equal(pack_nibbles(read.zeros, 0), saved["weight_zero_point"])


@pytest.mark.parametrize("version", [1, 2])
def test_gptq(version: int) -> None:
    """Version 1 stores zero - 1, and -1 as 15."""
    made = replace(random_int4(16, 96, 32), g_idx=random_g_idx(96, 32))
    stored = (made.zeros - (2 - version)) & 15
    assert (made.zeros == 0).any()
    qweight, qzeros = pack_nibbles(made.codes.T, 0), pack_nibbles(stored.T, 1)
    read = from_gptq(qweight, qzeros, made.scales.T, made.g_idx, version=version)
    assert torch.equal(read.dequantize(), made.dequantize())


def test_gptq_by_hand() -> None:
    """One column of eight inputs, codes 0 to 7, stored zero 2, which version 1 means as 3."""
    qweight = torch.tensor([[0x76543210] * 8], dtype=torch.int32)
    qzeros = torch.tensor([[0x22222222]], dtype=torch.int32)
    read = from_gptq(qweight, qzeros, torch.full((1, 8), 0.5))
    assert read.dequantize()[5].tolist() == [(code - 3) * 0.5 for code in range(8)]


def test_awq() -> None:
    made = random_int4(24, 64, 32)
    qweight, qzeros = pack_nibbles(made.codes.T, 1, AWQ_ORDER), pack_nibbles(made.zeros.T, 1, AWQ_ORDER)
    assert torch.equal(from_awq(qweight, qzeros, made.scales.T).dequantize(), made.dequantize())


def test_awq_by_hand() -> None:
    """One input of eight columns: the nibbles, low first, are those of columns 0 2 4 6 1 3 5 7."""
    qweight = torch.tensor([[0x75316420]], dtype=torch.int32)
    read = from_awq(qweight, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 8))
    assert read.dequantize()[:, 0].tolist() == list(range(8))


@FEW
@given(
    n=st.integers(1, 140),
    group=st.sampled_from([32, 64, 128, 256]),
    groups=st.integers(1, 4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_the_kernels_layout_keeps_every_bit(n: int, group: int, groups: int, dtype: torch.dtype) -> None:
    made = random_int4(n, group * groups, group, dtype=dtype, seed=n)
    packed = pack_int4(made)
    assert packed.words.shape[1] % TILE == 0
    assert packed.words.numel() * 8 % (TILE * TILE) == 0
    back = unpack_int4(packed)
    assert torch.equal(back.codes, made.codes)
    assert torch.equal(back.dequantize(), made.dequantize())


def test_the_kernels_layout_by_hand() -> None:
    """Column 2W*i + 2j + half of a slab lies in word j, bits 16 * half + 4i; here W = 4 words."""
    codes = torch.zeros(1, 32, dtype=torch.uint8)
    codes[0, 2 * 4 * 3 + 2 * 1 + 1] = 0xA
    words = pack_int4(Int4Codes(codes, torch.ones(1, 1), torch.full((1, 1), 8, dtype=torch.uint8))).words
    assert words[0, 0].tolist() == [0, 0xA0000000 - (1 << 32), 0, 0]


def test_scales_of_32_bits_are_rounded_to_16_half_to_even() -> None:
    """One eight-bit step above 1.0 is kept, half of it goes down to even, one and a half up."""
    step = 2.0**-15
    scales = torch.tensor([[1.0 + step], [1.0 + step / 2], [1.0 + 1.5 * step]])
    zeros = torch.tensor([[3], [0], [15]], dtype=torch.uint8)
    back = unpack_int4(pack_int4(Int4Codes(torch.ones(3, 32, dtype=torch.uint8), scales, zeros)))
    assert back.scales.flatten().tolist() == [1.0 + step, 1.0, 1.0 + 2 * step]
    assert torch.equal(back.zeros, zeros)


def test_act_order_brings_groups_together() -> None:
    made = replace(random_int4(5, 96, 32), g_idx=random_g_idx(96, 32))
    packed = pack_int4(made)
    assert packed.order is not None
    assert torch.equal(unpack_int4(packed).dequantize(), made.dequantize()[:, packed.order])
    x = random(3, 96)
    torch.testing.assert_close(
        packed.activations(x) @ unpack_int4(packed).dequantize().T, x @ made.dequantize().T, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("g_idx", [None, torch.arange(96) // 32, torch.full((96,), -1)])
def test_columns_in_order_are_not_permuted(g_idx: Tensor | None) -> None:
    saved, _ = published_by_the_library(16, 96, 32, symmetric=True)
    read = from_compressed_tensors(saved["weight_packed"], saved["weight_scale"], (16, 96), g_idx=g_idx)
    assert pack_int4(read).order is None


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ShapeError, match="group size is 48"):
        pack_int4(random_int4(2, 96, 48))
    with pytest.raises(ShapeError, match="g_idx should name each group 32 times"):
        pack_int4(replace(random_int4(2, 64, 32), g_idx=torch.zeros(64)))
    with pytest.raises(ShapeError, match="packed is"):
        from_compressed_tensors(torch.zeros(4, 5, dtype=torch.int32), torch.ones(4, 1), (4, 32))
    with pytest.raises(ShapeError, match="version is 3"):
        from_gptq(torch.zeros(4, 8), torch.zeros(1, 1), torch.ones(1, 8), version=3)
