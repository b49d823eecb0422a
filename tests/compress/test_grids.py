"""Rounding: no number further from its code than half a step, and the same numbers that compressed-tensors makes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_compress.errors import InvalidRecipe
from penstock_compress.gptq import nearest
from penstock_compress.grids import FP8_LARGEST, Grid, Scales, round_weight, spread
from penstock_compress.packing import from_tensors, pack, to_tensors, unpack
from penstock_compress.recipe import SCHEMES
from torch import Tensor

GRIDS = [pytest.param(replace(scheme.grid, group=32), id=name) for name, scheme in SCHEMES.items()]


def weight_of(rows: int = 40, columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_is_further_than_half_a_step_from_its_code(grid: Grid, dtype: torch.dtype) -> None:
    weight = weight_of()
    rounded = nearest(weight, grid, dtype)
    step = spread(rounded.scales.scale.float(), weight.shape, grid).expand(weight.shape)
    if grid.kind == "float":
        step = torch.maximum(weight.abs() / 8, step / 256)  # three bits behind the point, less where numbers are tiny
    wrong = (rounded.dequantize() - weight).abs()
    # The scale that is stored in 16 bits may lie a little below that of the largest number, which is then cut off.
    assert (wrong <= step * (0.5 + 1e-4) + (0.04 * weight.abs() if dtype == torch.bfloat16 else 1e-6)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_row_of_zeros_stays_zero(grid: Grid) -> None:
    weight = weight_of()
    weight[3] = 0
    assert (nearest(weight, grid, torch.bfloat16).dequantize()[3] == 0).all()


def test_zero_is_exact_where_a_range_lies_beside_it() -> None:
    weight = weight_of().abs() + 5
    weight[:, ::7] = 0
    rounded = nearest(weight, Grid(4, symmetric=False, scope="group", group=32), torch.float32)
    assert (rounded.dequantize()[:, ::7] == 0).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_searched_ranges_lose_no_more(grid: Grid) -> None:
    weight = weight_of() ** 3
    plain = (nearest(weight, grid, torch.float32).dequantize() - weight).abs().pow(2.4).sum()
    searched = (nearest(weight, replace(grid, searched=True), torch.float32).dequantize() - weight).abs().pow(2.4).sum()
    assert searched <= plain
    assert grid.bits == 8 or searched < plain


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if not name.startswith("fp8")])
def test_the_library_finds_the_same_codes(scheme: str) -> None:
    grid = replace(SCHEMES[scheme].grid, group=32)
    weight, rounded = weight_of(), nearest(weight_of(), grid, torch.float32)
    group = {"group_size": 32} if grid.scope == "group" else {}
    arguments = QuantizationArgs(num_bits=grid.bits, symmetric=grid.symmetric, strategy=grid.scope, **group)
    runs = weight.view(40, -1, 32) if grid.scope == "group" else weight.view(40, 1, -1)
    scale, zero = calculate_qparams(runs.amin(-1), runs.amax(-1), arguments)
    assert torch.allclose(scale, rounded.scales.scale)
    codes = quantize(weight, scale, zero, arguments, dtype=torch.int8)
    assert (codes != rounded.codes).float().mean() < 0.002  # numbers half-way between two codes
    theirs = dequantize(rounded.codes, rounded.scales.scale, rounded.scales.zero, arguments)
    assert torch.allclose(theirs, rounded.dequantize(), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31))
def test_packed_numbers_are_the_librarys_and_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    values = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = pack(values, bits)
    assert torch.equal(unpack(packed, bits, columns).long(), values)
    signed = (values - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert torch.equal(unpack_from_int32(packed, bits, signed.shape), signed)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_tensors_hold_all_of_a_rounded_weight(scheme: str) -> None:
    grid, activations = replace(SCHEMES[scheme].grid, group=32), SCHEMES[scheme].activations
    rounded = nearest(weight_of(37, 96), grid, torch.bfloat16)
    stored = to_tensors("a.b", rounded, activations)
    again = from_tensors("a.b", stored, grid, activations)
    assert torch.equal(again.codes.float(), rounded.codes.float())
    assert torch.equal(again.dequantize(), rounded.dequantize())
    assert all(name.startswith("a.b.weight") and tensor.is_contiguous() for name, tensor in stored.items())


def test_floats_are_cut_at_the_largest() -> None:
    grid = Grid(8, "float")
    rounded = round_weight(torch.tensor([[1e6, -1e6, 1.0]]), grid, Scales(torch.ones(1, 1)))
    assert rounded.dequantize().tolist() == [[FP8_LARGEST, -FP8_LARGEST, 1.0]]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("bits", {"bits": 9}),
        ("bits", {"bits": 1}),
        ("group", {"bits": 4, "scope": "group", "group": 12}),
        ("scheme", {"bits": 4, "kind": "float"}),
    ],
)
def test_a_grid_that_cannot_be_is_refused(field: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        Grid(**wrong)
    assert refused.value.field == field
