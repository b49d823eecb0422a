"""Products with quantized weights in Triton's interpreter, against float64; wrong kernels and wrong scales are caught.

bfloat16, and e4m3's rounding, are for a GPU (`tests/gpu/test_quant_matmul.py`): the interpreter computes neither. Here
bfloat16 is only unpacked, which is a matter of bits, and compiled.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels import quant_matmul as reference
from penstock_kernels.checks import DtypeError, ShapeError
from penstock_kernels.gpu import quant_matmul_8bit, quant_matmul_w4a16, split_k
from penstock_kernels.gpu.quant_matmul_8bit import block_matmul, channel_matmul, w8a8_matmul
from penstock_kernels.gpu.quant_matmul_w4a16 import dequantize_int4, unpack_slab, w4a16_matmul
from penstock_kernels.gpu.split_k import Tile, split_arrivals
from penstock_kernels.quant_int4 import Int4Weight, pack_int4, unpack_int4
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import quantize_fp8, quantize_fp8_blocks, quantize_fp8_runs, quantize_int8
from torch import Tensor

from tests.kernels.quant_cases import close, random, random_g_idx, random_int4

FEW = settings(max_examples=6, deadline=None, derandomize=True)
DTYPES = [torch.float32, torch.float16]
QUANTIZE = {torch.int8: quantize_int8, torch.float8_e4m3fn: quantize_fp8}
SMALL = Tile(rows=16, columns=32, depth=128, num_warps=4, num_stages=2)  # so that small products are of many tiles


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What a launcher allocates holds NaN, or the largest integer, until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def arrivals() -> Iterator[Tensor]:
    """The counters are left as they were."""
    made = split_arrivals("cpu")
    yield made
    assert not made.any()


def weights_of(packed: Int4Weight) -> Tensor:
    return unpack_int4(packed).dequantize()


# W4A16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k", "group"), [(1, 40, 384, 128), (17, 130, 160, 32), (129, 9, 64, 64)])
def test_w4a16(arrivals: Tensor, m: int, n: int, k: int, group: int, dtype: torch.dtype) -> None:
    packed, x, bias = pack_int4(random_int4(n, k, group)), random(m, k, dtype=dtype), random(n, dtype=dtype)
    got = w4a16_matmul(x, packed, bias, arrivals=arrivals)
    assert got.dtype == dtype
    assert close(got, x, weights_of(packed), bias)


@FEW
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 70),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128, 256]),
    splits=st.integers(1, 3),
)
def test_w4a16_of_drawn_shapes(m: int, n: int, groups: int, group: int, splits: int) -> None:
    """Also groups wider than a slab, splits that get no step, and rows that lie apart."""
    packed, x = pack_int4(random_int4(n, groups * group, group)), random(m, groups * group + 3)[:, 3:]
    counters = split_arrivals("cpu")
    got = w4a16_matmul(x, packed, arrivals=counters, tile=replace(SMALL, splits=splits))
    assert close(got, x, weights_of(packed))
    assert not counters.any()


def test_w4a16_in_act_order(arrivals: Tensor) -> None:
    """Against the weights in their published order, g_idx and all."""
    made = replace(random_int4(20, 96, 32), g_idx=random_g_idx(96, 32))
    x = random(3, 96)
    assert close(w4a16_matmul(x, pack_int4(made), arrivals=arrivals), x, made.dequantize())


def test_w4a16_of_many_rows_is_dequantized_beforehand(arrivals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = pack_int4(random_int4(9, 32, 32)), random(quant_matmul_w4a16.FUSED_ROWS + 1, 32)
    monkeypatch.setattr(quant_matmul_w4a16, "_launch", None)
    assert close(w4a16_matmul(x, packed, arrivals=arrivals), x, weights_of(packed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "group"), [(65, 160, 32), (3, 384, 128)])
def test_dequantize(n: int, k: int, group: int, dtype: torch.dtype) -> None:
    packed = pack_int4(random_int4(n, k, group))
    assert torch.equal(dequantize_int4(packed, dtype), reference.dequantize_int4(packed, dtype))


@triton.jit
def unpack_kernel(words, out, DTYPE):  # type: ignore[no-untyped-def]  # arguments have Triton's types
    row = tl.arange(0, 16)[:, None]
    codes = unpack_slab(tl.load(words + row * 16 + tl.arange(0, 16)[None, :]), DTYPE)
    tl.store(out + row * 128 + tl.arange(0, 128)[None, :], codes.to(tl.int16, bitcast=True))


@pytest.mark.parametrize(
    ("dtype", "kind", "lift"), [(torch.bfloat16, tl.bfloat16, 2.0**127), (torch.float16, tl.float16, 2.0**15)]
)
def test_codes_are_unpacked_to_subnormals_of_either_type(dtype: torch.dtype, kind: Any, lift: float) -> None:
    """The bits alone: torch reads what they mean, times the power of two that the kernel lifts them by."""
    made = random_int4(16, 128, 128)
    bits = torch.empty(16, 128, dtype=torch.int16)
    unpack_kernel[(1,)](pack_int4(made).words, bits, kind)
    assert torch.equal(bits.view(dtype).float() * lift, made.codes.float() / 8)


# 8 bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", QUANTIZE)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 300), (17, 70, 128), (129, 9, 40)])
def test_channel_matmul(arrivals: Tensor, m: int, n: int, k: int, codes: torch.dtype, dtype: torch.dtype) -> None:
    weight, (x, scales) = ChannelWeight(*QUANTIZE[codes](random(n, k))), QUANTIZE[codes](random(m, k))
    bias = random(n, dtype=dtype)
    got = channel_matmul(x, scales, weight, bias, dtype, arrivals=arrivals)
    assert got.dtype == dtype
    assert close(got, x.float() * scales[:, None], weight.codes.float() * weight.scales[:, None], bias)


def blockwise(weight: BlockWeight) -> Tensor:
    n, k = weight.codes.shape
    return weight.codes.float() * weight.scales.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 130, 300), (17, 40, 256), (65, 9, 129)])
def test_block_matmul(arrivals: Tensor, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Blocks that differ a hundredfold in scale; the last of each direction is cut off."""
    values = random(n, k)
    values[:, 128:] *= 100
    values[128:] *= 30
    weight, (x, scales) = BlockWeight(*quantize_fp8_blocks(values)), quantize_fp8_runs(random(m, k))
    got = block_matmul(x, scales, weight, None, dtype, arrivals=arrivals)
    assert close(got, x.float() * scales.repeat_interleave(128, 1)[:, :k], blockwise(weight))


@FEW
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 70),
    k=st.integers(1, 400),
    codes=st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    splits=st.integers(1, 3),
)
def test_8_bits_of_drawn_shapes(m: int, n: int, k: int, codes: torch.dtype, splits: int) -> None:
    weight, (x, scales) = ChannelWeight(*QUANTIZE[codes](random(n, k))), QUANTIZE[codes](random(m, k))
    counters, tile = split_arrivals("cpu"), replace(SMALL, splits=splits)
    got = channel_matmul(x, scales, weight, None, torch.float32, arrivals=counters, tile=tile)
    assert close(got, x.float() * scales[:, None], weight.codes.float() * weight.scales[:, None])
    assert not counters.any()


def test_w8a8_is_the_reference_bit_for_bit(arrivals: Tensor) -> None:
    weight, x = ChannelWeight(*quantize_int8(random(40, 300))), random(17, 300)
    assert torch.equal(w8a8_matmul(x, weight, arrivals=arrivals), reference.w8a8_matmul(x, weight))


def test_one_request_does_not_move_another(arrivals: Tensor) -> None:
    """Scales are a row's own: an outlier in one row leaves the others' products as they were."""
    weight, x = ChannelWeight(*quantize_int8(random(40, 300))), random(3, 300)
    before = w8a8_matmul(x, weight, arrivals=arrivals)
    x[1, 5] = 1e4
    after = w8a8_matmul(x, weight, arrivals=arrivals)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


# The references, by the formulas of their module


def test_references_against_float64() -> None:
    x = random(5, 160)
    packed = pack_int4(random_int4(20, 160, 32))
    assert close(reference.w4a16_matmul(x, packed), x, weights_of(packed))
    for codes, matmul in ((torch.int8, reference.w8a8_matmul), (torch.float8_e4m3fn, reference.fp8_matmul)):
        weight, (kept, scales) = ChannelWeight(*QUANTIZE[codes](random(20, 160))), QUANTIZE[codes](x)
        assert close(matmul(x, weight), kept.float() * scales[:, None], weight.codes.float() * weight.scales[:, None])
    blocks, (kept, scales) = BlockWeight(*quantize_fp8_blocks(random(20, 160))), quantize_fp8_runs(x)
    wide = kept.float() * scales.repeat_interleave(128, 1)[:, :160]
    assert close(reference.fp8_block_matmul(x, blocks), wide, blockwise(blocks))


# Splits


@pytest.mark.parametrize("splits", [2, 5])
def test_splits_are_summed_in_their_order_however_they_arrive(arrivals: Tensor, splits: int) -> None:
    """Rows beyond m are neither written nor read: the parts are poisoned."""
    packed, x = pack_int4(random_int4(40, 640, 128)), random(17, 640)
    tile = replace(SMALL, splits=splits)
    first = w4a16_matmul(x, packed, arrivals=arrivals, tile=tile)
    assert close(first, x, weights_of(packed))
    assert torch.equal(first, w4a16_matmul(x, packed, arrivals=arrivals, tile=tile))


def test_each_part_of_each_tile_has_a_place_of_its_own(arrivals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter ends one tile before the next begins, so only the places themselves would show a collision."""
    places = torch.full((2 * 3 * 2 * 16 * 32,), torch.nan)
    monkeypatch.setattr(quant_matmul_w4a16, "partial_sums", lambda *_: places)
    packed, x = pack_int4(random_int4(96, 256, 128)), random(32, 256)
    assert close(w4a16_matmul(x, packed, arrivals=arrivals, tile=replace(SMALL, splits=2)), x, weights_of(packed))
    assert not places.isnan().any()


def test_few_rows_are_split_until_every_processor_has_work() -> None:
    tile = Tile(rows=16, columns=128, depth=128, num_warps=4, num_stages=4)
    assert tile.split_for(1, 4096, 14336, 132).splits == 8
    assert tile.split_for(1, 28672, 4096, 132).splits == 1
    assert tile.split_for(1, 1024, 4096, 132).splits == 8  # four steps each, not more splits than that
    assert tile.split_for(1, 128, 128, 132).splits == 1


# Mutants


@triton.jit
def halves_swapped(words, index, dtype):  # type: ignore[no-untyped-def]  # Triton's types
    low = ((words >> (4 * index)) & 15).to(dtype) * 0.125
    return tl.join(((words >> (4 * index + 16)) & 15).to(dtype) * 0.125, low)


@triton.jit
def runs_swapped(words, index, dtype):  # type: ignore[no-untyped-def]  # Triton's types
    low = ((words >> (4 * (3 - index))) & 15).to(dtype) * 0.125
    return tl.join(low, ((words >> (4 * (3 - index) + 16)) & 15).to(dtype) * 0.125)


@triton.jit
def zero_off_by_one(packed):  # type: ignore[no-untyped-def]  # Triton's types
    return (packed & -256).to(tl.float32, bitcast=True), (packed & 255).to(tl.float32) + 1


@triton.jit
def last_step_lost(steps, SPLITS):  # type: ignore[no-untyped-def]  # Triton's types
    return 0, steps - 1


@triton.jit
def part_alone(acc, partials, arrivals, m, SPLITS):  # type: ignore[no-untyped-def]  # Triton's types
    return acc, m


@pytest.mark.parametrize(
    ("name", "mutant", "splits"),
    [
        ("nibble_pairs", halves_swapped, 1),
        ("nibble_pairs", runs_swapped, 1),
        ("scale_and_zero", zero_off_by_one, 1),
        ("share_of_steps", last_step_lost, 1),
        ("sum_splits", part_alone, 2),
    ],
)
def test_a_wrong_kernel_is_caught(
    arrivals: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any, splits: int
) -> None:
    packed, x = pack_int4(random_int4(20, 256, 64)), random(3, 256)
    tile = replace(SMALL, splits=splits)
    assert close(w4a16_matmul(x, packed, arrivals=arrivals, tile=tile), x, weights_of(packed))
    monkeypatch.setattr(quant_matmul_w4a16, name, mutant)
    assert not close(w4a16_matmul(x, packed, arrivals=arrivals, tile=tile), x, weights_of(packed))


MUTATIONS: dict[str, Callable[[Int4Weight], Int4Weight]] = {
    "the neighbour group's scale": lambda packed: replace(packed, scales=packed.scales.roll(1, 0)),
    "the neighbour row's scale": lambda packed: replace(packed, scales=packed.scales.roll(1, 1)),
    "the neighbour word": lambda packed: replace(packed, words=packed.words.roll(1, 2)),
    "no permutation": lambda packed: replace(packed, order=None),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_weight_is_caught(arrivals: Tensor, mutation: str) -> None:
    made = replace(random_int4(128, 256, 64), g_idx=random_g_idx(256, 64))
    wrong, x = MUTATIONS[mutation](pack_int4(made)), random(3, 256)
    assert not close(w4a16_matmul(x, wrong, arrivals=arrivals), x, made.dequantize())


def test_wrong_scales_of_8_bits_are_caught(arrivals: Tensor) -> None:
    blocks, (x, scales) = BlockWeight(*quantize_fp8_blocks(random(130, 256))), quantize_fp8_runs(random(3, 256))
    wide = x.float() * scales.repeat_interleave(128, 1)
    wrong = replace(blocks, scales=blocks.scales.roll(1, 1))
    assert not close(block_matmul(x, scales, wrong, None, torch.float32, arrivals=arrivals), wide, blockwise(blocks))
    turned = scales.roll(1, 0)
    assert not close(block_matmul(x, turned, blocks, None, torch.float32, arrivals=arrivals), wide, blockwise(blocks))


# Refusals


def test_what_cannot_be_multiplied_is_refused(arrivals: Tensor) -> None:
    packed, weight = pack_int4(random_int4(8, 64, 32)), ChannelWeight(*quantize_int8(random(8, 64)))
    with pytest.raises(ShapeError, match="x is"):
        w4a16_matmul(random(2, 32), packed, arrivals=arrivals)
    with pytest.raises(DtypeError, match="x is float64"):
        w4a16_matmul(random(2, 64, dtype=torch.float64), packed, arrivals=arrivals)
    with pytest.raises(ShapeError, match="x has strides"):
        w4a16_matmul(random(64, 2).T, packed, arrivals=arrivals)
    with pytest.raises(ShapeError, match="bias is"):
        w4a16_matmul(random(2, 64), packed, random(9), arrivals=arrivals)
    with pytest.raises(ShapeError, match="arrivals counts 1 tiles"):
        w4a16_matmul(random(17, 64), packed, arrivals=arrivals[:1], tile=replace(SMALL, splits=2))
    with pytest.raises(DtypeError, match="codes is float8_e4m3fn"):
        channel_matmul(*quantize_fp8(random(2, 64)), weight, None, torch.float32, arrivals=arrivals)
    with pytest.raises(ShapeError, match=r"tile\.depth is 64"):
        block_matmul(
            *quantize_fp8_runs(random(2, 64)),
            BlockWeight(*quantize_fp8_blocks(random(8, 64))),
            None,
            torch.float32,
            arrivals=arrivals,
            tile=replace(SMALL, depth=64),
        )


def test_nothing_times_a_weight_is_nothing(arrivals: Tensor) -> None:
    packed, weight = pack_int4(random_int4(8, 64, 32)), ChannelWeight(*quantize_int8(random(8, 64)))
    assert w4a16_matmul(random(0, 64), packed, arrivals=arrivals).shape == (0, 8)
    assert w8a8_matmul(random(0, 64), weight, arrivals=arrivals).shape == (0, 8)


def test_every_tile_in_the_tables_is_compiled_ahead() -> None:
    tiles = {*quant_matmul_8bit._INT8_TILES, *quant_matmul_8bit._FP8_TILES, *quant_matmul_w4a16._TILES}
    cases = quant_matmul_8bit.compile_cases() + quant_matmul_w4a16.compile_cases()
    compiled = {(case.constexprs.get("ROWS"), case.constexprs.get("COLUMNS"), case.num_warps) for case in cases}
    assert {(tile.rows, tile.columns, tile.num_warps) for tile in tiles} <= compiled
    assert split_k.ARRIVALS >= split_k.MOST_SPLITS
