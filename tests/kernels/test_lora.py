"""Low-rank adapters in Triton's interpreter against their reference, and the reference against plain products."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock_kernels.checks import DtypeError, ShapeError
from penstock_kernels.gpu import lora as gpu
from penstock_kernels.lora import NO_ADAPTER, lora_expand, lora_shrink
from torch import Tensor


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """What a launcher allocates holds NaN until a kernel writes it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def segments(lengths: list[int], adapters: list[int]) -> tuple[Tensor, Tensor]:
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return starts, torch.tensor(adapters, dtype=torch.int32)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 3e-5 if dtype == torch.float32 else 4e-3
    return torch.allclose(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


def run(x: Tensor, down: Tensor, up: Tensor, cut: tuple[Tensor, Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    shrunk = gpu.lora_shrink(x, down, *cut)
    gpu.lora_expand(shrunk, up, *cut, out)
    return shrunk, out


def test_the_reference_is_the_product_with_both_matrices() -> None:
    x, down, up, out = random(7, 12), random(3, 4, 12), random(3, 4, 10), random(7, 10)
    starts, adapters = segments([2, 0, 4], [2, 1, 0])
    expected = out.clone()
    for token, adapter in enumerate([2, 2, 0, 0, 0, 0]):
        expected[token] += x[token] @ down[adapter].T @ up[adapter]
    lora_expand(lora_shrink(x, down, starts, adapters), up, starts, adapters, out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rank", [8, 24, 64])
def test_segments_of_every_kind(rank: int, dtype: torch.dtype) -> None:
    """One token, none, more than a tile; without an adapter; padding after the last; a slice of a wider product."""
    cut = segments([1, 0, 17, 3, 2], [3, 0, 1, NO_ADAPTER, 3])
    x, down, up = (random(*shape, dtype=dtype) * 0.3 for shape in ((26, 145), (4, rank, 145), (4, rank, 131)))
    product = random(26, 140, dtype=dtype)
    before, out = product.clone(), product[:, 5:136]
    expected = out.clone()
    shrunk_reference = lora_shrink(x, down, *cut)
    lora_expand(shrunk_reference, up, *cut, expected)
    shrunk, out = run(x, down, up, cut, out)
    assert close(shrunk[:23], shrunk_reference[:23], dtype)
    assert close(out, expected, dtype)
    assert torch.equal(out[18:21], before[18:21, 5:136])
    assert torch.equal(out[23:], before[23:, 5:136])
    assert torch.equal(product[:, :5], before[:, :5])
    assert torch.equal(product[:, 136:], before[:, 136:])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 2)), min_size=1, max_size=5), st.sampled_from([8, 16, 40])
)
def test_ragged_segments(drawn: list[tuple[int, int]], rank: int) -> None:
    lengths, adapters = [length for length, _ in drawn], [adapter for _, adapter in drawn]
    cut, tokens = segments(lengths, adapters), sum(lengths) + 1
    x, down, up, out = random(tokens, 20), random(3, rank, 20), random(3, rank, 18), random(tokens, 18)
    expected = out.clone()
    lora_expand(lora_shrink(x, down, *cut), up, *cut, expected)
    _, got = run(x, down, up, cut, out)
    assert close(got, expected, torch.float32)


@pytest.mark.parametrize("tokens", [128, 129])
def test_wide_tiles_of_long_segments(tokens: int) -> None:
    cut = segments([tokens - 1], [1])
    x, down, up, out = random(tokens, 33), random(2, 8, 33), random(2, 8, 17), random(tokens, 17)
    expected = out.clone()
    lora_expand(lora_shrink(x, down, *cut), up, *cut, expected)
    assert gpu._shrink_constants(tokens, 1, 8)["BLOCK_TOKENS"] == 64
    _, got = run(x, down, up, cut, out)
    assert close(got, expected, torch.float32)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 129])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_grid_holds_the_worst_division_into_segments(tokens: int, count: int) -> None:
    """Segments of one token but for the last."""
    lengths = [1] * min(count - 1, tokens - 1)
    lengths.append(tokens - sum(lengths))
    for block in (16, 64):
        assert sum(-(-length // block) for length in lengths) <= gpu._most_tiles(tokens, len(lengths), block)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, down, up = random(20, 40), random(2, 16, 40), random(2, 16, 24)
    _, alone = run(x[3:4], down, up, segments([1], [1]), torch.zeros(1, 24))
    _, among = run(x, down, up, segments([3, 2, 15], [0, 1, 0]), torch.zeros(20, 24))
    assert torch.equal(alone[0], among[3])


def test_wrong_products_are_caught() -> None:
    x, down, up = random(9, 40), random(3, 16, 40), random(3, 16, 24)
    cut = segments([4, 5], [1, 2])
    _, got = run(x, down, up, cut, torch.ones(9, 24))
    for wrong_down, wrong_up, wrong_cut, base in [
        (down.roll(1, 0), up, cut, 1.0),
        (down, up.roll(1, 1), cut, 1.0),
        (down, up, segments([5, 4], [1, 2]), 1.0),
        (down, up, segments([4, 5], [1, NO_ADAPTER]), 1.0),
        (down, up, cut, 0.0),
    ]:
        expected = torch.full((9, 24), base)
        lora_expand(lora_shrink(x, wrong_down, *wrong_cut), wrong_up, *wrong_cut, expected)
        assert not close(got, expected, torch.float32)


def test_what_cannot_be_run_is_refused_by_name() -> None:
    x, down, up, cut = random(4, 8), random(2, 8, 8), random(2, 8, 6), segments([4], [0])
    with pytest.raises(ShapeError, match=r"starts is \[2\] and should be \[3\]"):
        gpu.lora_shrink(x, down, cut[0], cut[1].repeat(2))
    with pytest.raises(DtypeError, match="adapters is int64"):
        gpu.lora_shrink(x, down, cut[0], cut[1].long())
    with pytest.raises(DtypeError, match="down is float16"):
        gpu.lora_shrink(x, down.half(), *cut)
    with pytest.raises(ShapeError, match="down is of rank 256"):
        gpu.lora_shrink(x, random(1, 256, 8), *cut)
    with pytest.raises(ShapeError, match=r"out is \[4, 5\] and should be \[4, 6\]"):
        gpu.lora_expand(random(4, 8), up, *cut, torch.zeros(4, 5))
