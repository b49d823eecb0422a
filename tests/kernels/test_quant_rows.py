"""Activations to 8 bits: the references by their formulas, the kernel bit for bit against the references."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels import quant_rows as reference
from penstock_kernels.checks import DtypeError, ShapeError
from penstock_kernels.gpu import quant_rows as kernel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.quant_cases import random, seeded

FEW = settings(max_examples=4, deadline=None, derandomize=True)
Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
PAIRS: dict[str, tuple[Quantize, Quantize]] = {
    "int8": (kernel.quantize_int8, reference.quantize_int8),
    "fp8": (kernel.quantize_fp8, reference.quantize_fp8),
    "fp8 runs": (kernel.quantize_fp8_runs, reference.quantize_fp8_runs),
}


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What a launcher allocates holds NaN, or the largest integer, until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(got[1], wanted[1]) and torch.equal(got[0].view(torch.uint8), wanted[0].view(torch.uint8))


def near_e4m3(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(numbers, the normal e4m3 numbers that each is nearest to), with one of 448 in each run: its scale is 1.

    None is a tie, a subnormal or rounded up to a power of two, which the interpreter gets wrong.
    """
    draw = seeded(seed + rows * width)
    bits = torch.randint(0x08, 0x7F, (rows, width), dtype=torch.uint8, generator=draw)
    bits[:, ::128] = 0x7E
    aside = torch.rand(rows, width, generator=draw) * 0.03
    aside[(bits & 7 != 0) & (torch.rand(rows, width, generator=draw) < 0.5)] *= -1
    aside[bits == 0x7E] = 0
    sign = torch.randint(0, 2, (rows, width), dtype=torch.uint8, generator=draw) << 7
    codes = (bits | sign).view(torch.float8_e4m3fn)
    return codes.float() * (1 + aside), codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [1, 17])
def test_int8_kernel_against_reference(dtype: torch.dtype, rows: int) -> None:
    x = random(rows, 300, dtype=dtype)
    assert same(kernel.quantize_int8(x), reference.quantize_int8(x))


@pytest.mark.parametrize("quantize", [*PAIRS["fp8"], *PAIRS["fp8 runs"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [1, 17])
def test_e4m3_is_the_nearest(quantize: Quantize, dtype: torch.dtype, rows: int) -> None:
    """Kernels and references alike; each run or row has its own power of two for its scale."""
    x, codes = near_e4m3(rows, 300)
    powers = 2.0 ** torch.arange(rows)[:, None].remainder(5)
    scales = torch.ones(rows, 3) * powers if quantize in PAIRS["fp8 runs"] else powers[:, 0]
    assert same(quantize((x * powers).to(dtype)), (codes, scales))


@FEW
@given(rows=st.integers(1, 4), width=st.integers(1, 300))
def test_drawn_shapes(rows: int, width: int) -> None:
    x = random(rows, width, seed=width)
    assert same(kernel.quantize_int8(x), reference.quantize_int8(x))
    x, codes = near_e4m3(rows, width)
    assert same(kernel.quantize_fp8_runs(x), (codes, torch.ones(rows, -(-width // 128))))


def test_more_runs_than_a_program_holds() -> None:
    x, codes = near_e4m3(2, 17 * 128 + 5)
    assert same(kernel.quantize_fp8_runs(x), (codes, torch.ones(2, 18)))


def test_scales_of_any_numbers() -> None:
    x = random(3, 300)
    for name in ("fp8", "fp8 runs"):
        quantize, wanted = PAIRS[name]
        assert torch.equal(quantize(x)[1], wanted(x)[1])


def test_rows_of_a_wider_tensor_are_read_in_place() -> None:
    x = random(5, 96)[:, 10:74]
    assert same(kernel.quantize_int8(x), reference.quantize_int8(x.contiguous()))


@pytest.mark.parametrize("quantize", [kernel.quantize_int8, reference.quantize_int8])
def test_int8_by_hand(quantize: Quantize) -> None:
    """Halves go to the even neighbour; a row of zeros stays zeros."""
    codes, scales = quantize(torch.tensor([[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49], [0.0] * 8]))
    assert codes[0].tolist() == [127, -127, 0, 2, 2, 0, -2, 0]
    assert scales[0] == 1.0
    assert codes[1].tolist() == [0] * 8


def test_e4m3_by_hand() -> None:
    """At scale 1: what e4m3 holds is kept; between 8 and 16 it holds whole numbers, halves go to even."""
    kept = [448.0, -448.0, 0.0, 240.0, 13.0, -9.0, 1.125, 2.0**-6, 2.0**-9]
    codes, scales = reference.quantize_fp8(torch.tensor([[*kept, 8.5, 9.5, 10.5, -10.5, 15.9]]))
    assert scales.tolist() == [1.0]
    assert codes.float()[0].tolist() == [*kept, 8.0, 10.0, 10.0, -10.0, 16.0]


def test_blocks_of_a_weight() -> None:
    """Each block of 128 x 128 has its own scale; the last ones are smaller."""
    weight = random(130, 300)
    weight[:128, 128:256] *= 100
    codes, scales = reference.quantize_fp8_blocks(weight)
    assert codes.shape == weight.shape
    assert scales.shape == (2, 3)
    assert scales[0, 1] == weight[:128, 128:256].abs().max() / 448
    assert scales[1, 2] == weight[128:, 256:].abs().max() / 448
    wide = scales.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :300]
    assert bool(((codes.float() * wide - weight).abs() <= weight.abs() / 16 + wide * 2**-10).all())


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in which the interpreter divides infinities
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantize", [each for pair in PAIRS.values() for each in pair])
def test_a_broken_row_shows_and_spoils_no_other(quantize: Quantize, bad: float) -> None:
    x = random(3, 40)
    wanted = quantize(x)[1].flatten()
    x[1, 7] = bad
    scales = quantize(x)[1].flatten()
    assert not scales[1].isfinite()
    assert torch.equal(scales[[0, 2]], wanted[[0, 2]])


@triton.jit
def too_large(one, other):  # type: ignore[no-untyped-def]  # a kernel's function has Triton's types
    return tl.maximum(one, other) + 1.0


def test_a_wrong_peak_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(3, 40)
    monkeypatch.setattr(kernel, "_larger", too_large)
    assert not same(kernel.quantize_int8(x), reference.quantize_int8(x))


def test_a_wrong_row_or_code_is_caught() -> None:
    x = random(3, 40)
    codes, scales = reference.quantize_int8(x)
    assert not same(kernel.quantize_int8(x), (codes.roll(1, 0), scales))
    assert not same(kernel.quantize_int8(x), (codes, scales.roll(1)))
    assert not same(kernel.quantize_int8(x.roll(1, 1)), (codes, scales))


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(ShapeError, match="x is"):
        kernel.quantize_int8(torch.zeros(3))
    with pytest.raises(DtypeError, match="x is int32"):
        kernel.quantize_int8(torch.zeros(1, 3, dtype=torch.int32))
    with pytest.raises(ShapeError, match="65537 wide"):
        kernel.quantize_fp8(torch.zeros(1, 65537))
    with pytest.raises(ShapeError, match="x has strides"):
        kernel.quantize_int8(torch.zeros(4, 4).T)


class Divisions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """What everything is divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.divisors: list[object] = []

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if function.__name__.startswith("div"):
            self.divisors.append(given[1])
        return function(*given, **(named or {}))


@pytest.mark.parametrize(
    "quantize",
    [reference.quantize_int8, reference.quantize_fp8, reference.quantize_fp8_runs, reference.quantize_fp8_blocks],
)
def test_the_definition_divides_by_no_number(quantize: Quantize) -> None:
    """On a GPU torch would take the number's reciprocal instead, and weights rounded there would differ."""
    with Divisions() as seen:
        quantize(torch.randn(3, 300))
    assert len(seen.divisors) == 2
    assert all(isinstance(each, Tensor) and each.dtype == torch.float32 for each in seen.divisors)
