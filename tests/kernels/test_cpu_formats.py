"""Codes as checkpoints store them, on the CPU's kernels: every layout of 3, 4 and 8 bits against its definition."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu import support
from torch import Tensor

if support.lacking():
    pytest.skip(f"compiled kernels: {support.lacking()}", allow_module_level=True)

from penstock_kernels.cpu.packing import Int8, Plain
from penstock_kernels.cpu.packing_e4m3 import Float8
from penstock_kernels.cpu.packing_few_bits import FewBits
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight, fp8_block_matmul, fp8_matmul
from penstock_kernels.quant_rows import quantize_fp8, quantize_fp8_blocks

from tests.kernels.quant_cases import random, random_g_idx, random_int4
from tests.kernels.test_cpu_kernels import apart, rounded, unset

ORDER = 2e-6  # of the largest number: another order of float32 sums
ROWS = st.sampled_from([1, 2, 5, 17])
SEEN = 1e-4  # a mistake in one zero or scale moves an answer by more


def codes_of(n: int, k: int, group: int, bits: int = 4, zeros: bool = True, g_idx: Tensor | None = None) -> Int4Codes:
    made = random_int4(n, k, group)
    top = (1 << bits) - 1
    mine = made.zeros & top if zeros else torch.full_like(made.zeros, 1 << (bits - 1))
    return replace(made, codes=made.codes & top, zeros=mine, bits=bits, g_idx=g_idx)


def few_bits_product(x: Tensor, weight: Int4Codes, run: int) -> Tensor:
    """In float64: activations are rounded by runs of columns in the order of the groups."""
    order = torch.argsort(weight.column_group, stable=True)
    taken = rounded(x[:, order].unflatten(-1, (-1, run))).flatten(-2)  # type: ignore[no-untyped-call]
    return taken @ weight.dequantize().double()[:, order].T


def answer(packed: Any, x: Tensor, width: int) -> Tensor:
    out: Tensor = packed(x, unset(len(x), width, dtype=torch.float32))
    return out


class TestFewBits:
    @given(
        rows=ROWS,
        width=st.sampled_from([1, 31, 64, 129]),
        shape=st.sampled_from([(32, 32), (128, 128), (96, 96), (192, 64), (256, 128), (48, 16), (40, 8), (144, 48)]),
        bits=st.sampled_from([3, 4]),
        zeros=st.booleans(),
        ordered=st.booleans(),
    )
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_every_grouping(
        self, rows: int, width: int, shape: tuple[int, int], bits: int, zeros: bool, ordered: bool
    ) -> None:
        k, group = shape
        weight = codes_of(width, k, group, bits, zeros, random_g_idx(k, group) if ordered else None)
        run = next(size for size in (32, 16, 8) if group % size == 0)
        x = random(rows, k, seed=1)
        off = (answer(FewBits(weight), x, width) - few_bits_product(x, weight, run)).abs().max()
        assert off < ORDER * k  # sums of products of some tens, which may come to nothing

    @pytest.mark.parametrize("bits", [3, 4])
    def test_gates_bias_and_rows_that_are_alone(self, bits: int) -> None:
        weight, bias = codes_of(96, 128, 64, bits), random(96)
        packed, x = FewBits(weight, bias, gate="silu"), random(17, 128).bfloat16()
        product = few_bits_product(x.float(), weight, 32) + bias.double()
        together = answer(packed, x, 48)
        assert apart(together, F.silu(product[:, :48]) * product[:, 48:]) < ORDER
        assert torch.equal(answer(packed, x[4:6], 48), together[4:6])

    @pytest.mark.parametrize("part", ["zeros", "scales"])
    @pytest.mark.parametrize("bits", [3, 4])
    def test_one_wrong_zero_or_scale_is_seen(self, part: str, bits: int) -> None:
        weight, x = codes_of(64, 256, 64, bits), random(3, 256)
        wrong = getattr(weight, part).clone()
        wrong[63, 3] = wrong[63, 3] ^ 1 if part == "zeros" else wrong[63, 3] * 1.25
        mutant = FewBits(replace(weight, **{part: wrong}))
        assert apart(answer(mutant, x, 64), few_bits_product(x, weight, 32)) > SEEN

    @pytest.mark.parametrize(
        ("weight", "lacking"),
        [
            (codes_of(8, 36, 12), "12 columns, no multiple of 8"),
            (codes_of(8, 64, 32, g_idx=torch.tensor([0] * 40 + [1] * 24)), "names them .40, 24. times"),
            (replace(codes_of(8, 32, 32), scales=torch.full((8, 1), 7e4)), "float16 does not hold"),
        ],
    )
    def test_what_it_does_not_take(self, weight: Int4Codes, lacking: str) -> None:
        with pytest.raises(ShapeError, match=lacking):
            FewBits(weight)


class TestFloat8:
    def test_every_code_is_what_it_stands_for(self) -> None:
        """As a weight, below the least normal number too, and rounded from activations, which 448 makes exact."""
        every = torch.arange(256, dtype=torch.uint8)
        finite = every[(every & 0x7F) != 0x7F].view(torch.float8_e4m3fn)
        codes = torch.zeros(len(finite), 256, dtype=torch.float8_e4m3fn)
        codes[:, 77] = finite
        x = torch.zeros(1, 256)
        x[0, 77] = 448.0
        packed = Float8(ChannelWeight(codes, torch.ones(len(finite))))
        for rows in (1, 9):  # decoded in registers, and beforehand
            found = answer(packed, x.expand(rows, -1), len(finite))
            assert torch.equal(found, (finite.float() * 448).expand(rows, -1))
        x[0, :254], one = finite.float(), ChannelWeight(torch.eye(256).to(torch.float8_e4m3fn), torch.ones(256))
        assert torch.equal(answer(Float8(one), x, 256)[0, :254], finite.float())

    @given(rows=ROWS, width=st.sampled_from([1, 31, 64, 129, 272]), columns=st.sampled_from([4, 30, 128, 200, 385]))
    @settings(max_examples=30, deadline=None, derandomize=True)
    @pytest.mark.parametrize("blocks", [False, True])
    def test_products(self, blocks: bool, rows: int, width: int, columns: int) -> None:
        weight, x, bias = random(width, columns), 3 * random(rows, columns, seed=2), random(width)
        if blocks:
            weight *= torch.logspace(-2, 2, columns)
            made: Any = BlockWeight(*quantize_fp8_blocks(weight))
            expected = fp8_block_matmul(x, made, bias)
        else:
            made = ChannelWeight(*quantize_fp8(weight))
            expected = fp8_matmul(x, made, bias)
        assert apart(answer(Float8(made, bias), x, width), expected) < ORDER

    @pytest.mark.parametrize("blocks", [False, True])
    def test_a_gate_over_both_halves(self, blocks: bool) -> None:
        weight, x = random(512, 256) * torch.linspace(0.1, 4, 512)[:, None], random(7, 256).bfloat16()
        made: Any = BlockWeight(*quantize_fp8_blocks(weight)) if blocks else ChannelWeight(*quantize_fp8(weight))
        product = (fp8_block_matmul if blocks else fp8_matmul)(x.float(), made).double()
        together = answer(Float8(made, gate="silu"), x, 256)
        assert apart(together, F.silu(product[:, :256]) * product[:, 256:]) < ORDER
        assert torch.equal(answer(Float8(made, gate="silu"), x[2:4], 256), together[2:4])

    @pytest.mark.parametrize("blocks", [False, True])
    def test_a_wrong_scale_is_seen(self, blocks: bool) -> None:
        weight, x = random(256, 256), random(3, 256)
        made: Any = BlockWeight(*quantize_fp8_blocks(weight)) if blocks else ChannelWeight(*quantize_fp8(weight))
        expected = (fp8_block_matmul if blocks else fp8_matmul)(x, made)
        made.scales.flatten()[1] *= 1.25
        assert apart(answer(Float8(made), x, 256), expected) > SEEN

    def test_what_it_does_not_take(self) -> None:
        codes = quantize_fp8(random(64, 64))[0].view(torch.uint8)
        codes[3, 5] = 0xFF
        with pytest.raises(ShapeError, match="1 of them are NaN"):
            Float8(ChannelWeight(codes.view(torch.float8_e4m3fn), torch.ones(64)))
        with pytest.raises(ShapeError, match="24 outputs of a gate"):
            Float8(BlockWeight(*quantize_fp8_blocks(random(48, 64))), gate="silu")


def test_int8_wants_whole_words() -> None:
    with pytest.raises(ShapeError, match="30 columns, no multiple of 4"):
        Int8(ChannelWeight(torch.zeros(8, 30, dtype=torch.int8), torch.ones(8)))


N, K = 256, 512
PROMISED = {  # bits of a weight: its own, and its share of scales (and zeros)
    "int8": (lambda: Int8(ChannelWeight(torch.ones(N, K, dtype=torch.int8), torch.ones(N))), 8 + 32 / K),
    "int4": (lambda: FewBits(codes_of(N, K, 128, zeros=False)), 4 + 16 / 128),
    "int4 of 32": (lambda: FewBits(codes_of(N, K, 32, zeros=False)), 4 + 16 / 32),
    "int4-asym": (lambda: FewBits(codes_of(N, K, 128)), 4 + (16 + 4) / 128),
    "int4-asym of 32": (lambda: FewBits(codes_of(N, K, 32)), 4 + (16 + 4) / 32),
    "int4-channel": (lambda: FewBits(codes_of(N, K, K, zeros=False)), 4 + 16 / K),
    "int3": (lambda: FewBits(codes_of(N, K, 128, 3, zeros=False)), 3 + 16 / 128),
    "int3-asym": (lambda: FewBits(codes_of(N, K, 128, 3)), 3 + (16 + 3) / 128),
    "fp8": (lambda: Float8(ChannelWeight(*quantize_fp8(torch.ones(N, K)))), 8 + 32 / K),
    "fp8-block": (lambda: Float8(BlockWeight(*quantize_fp8_blocks(torch.ones(N, K)))), 8 + 32 / 128**2),
    "bf16": (lambda: Plain(torch.ones(N, K, dtype=torch.bfloat16)), 16),
}


@pytest.mark.parametrize("scheme", PROMISED)
def test_no_more_is_held_than_a_format_promises(scheme: str) -> None:
    make, bits = PROMISED[scheme]
    held = 8 * make().held_bytes / (N * K)
    assert bits <= held < 1.05 * bits


def test_three_bits_in_small_groups_are_held_as_four() -> None:
    assert FewBits(codes_of(64, 48, 16, 3)).kind == "Int4 with zeros"
    assert FewBits(codes_of(64, 64, 32, 3)).kind == "Int3 with zeros"
