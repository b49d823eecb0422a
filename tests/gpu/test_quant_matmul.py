"""Products with quantized weights on a GPU: bfloat16, e4m3, every tile, graphs, sums that do not depend on timing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from penstock_kernels import quant_rows as reference
from penstock_kernels.gpu import quant_matmul_8bit, quant_matmul_w4a16, quant_rows
from penstock_kernels.gpu.quant_matmul_8bit import (
    block_matmul,
    channel_matmul,
    fp8_block_matmul,
    fp8_matmul,
    w8a8_matmul,
)
from penstock_kernels.gpu.quant_matmul_w4a16 import dequantize_int4, w4a16_matmul
from penstock_kernels.gpu.split_k import Tile, split_arrivals
from penstock_kernels.quant_int4 import Int4Weight, pack_int4, unpack_int4
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_matmul import dequantize_int4 as reference_dequantize_int4
from torch import Tensor

from tests.kernels.quant_cases import close, random_int4

DTYPES = [torch.bfloat16, torch.float16]
SHAPES = [(1, 4096, 4096), (7, 1000, 14336), (64, 4096, 2048), (129, 513, 1056)]
QUANTIZE = {torch.int8: reference.quantize_int8, torch.float8_e4m3fn: reference.quantize_fp8}


@pytest.fixture
def arrivals() -> Iterator[Tensor]:
    """The counters are left as they were."""
    made = split_arrivals("cuda")
    yield made
    assert not made.any()


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def int4(n: int, k: int, group: int, dtype: torch.dtype) -> Int4Weight:
    made = random_int4(n, k, group, dtype=dtype, seed=int(torch.randint(1 << 30, ())))
    return pack_int4(replace(made, codes=made.codes.cuda(), scales=made.scales.cuda(), zeros=made.zeros.cuda()))


def weights_of(packed: Int4Weight) -> Tensor:
    return unpack_int4(packed).dequantize()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_w4a16(arrivals: Tensor, m: int, n: int, k: int, group: int, dtype: torch.dtype) -> None:
    whole = k - k % group
    packed, x, bias = int4(n, whole, group, dtype), drawn(m, whole, dtype=dtype), drawn(n, dtype=dtype)
    assert close(w4a16_matmul(x, packed, bias, arrivals=arrivals), x, weights_of(packed), bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", quant_matmul_w4a16._TILES)
@pytest.mark.parametrize("splits", [1, 7])
def test_every_tile_of_w4a16(arrivals: Tensor, tile: Tile, splits: int, dtype: torch.dtype) -> None:
    packed, x = int4(300, 2048, 128, dtype), drawn(130, 2048, dtype=dtype)
    assert close(w4a16_matmul(x, packed, arrivals=arrivals, tile=replace(tile, splits=splits)), x, weights_of(packed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_w4a16_of_many_rows(arrivals: Tensor, dtype: torch.dtype) -> None:
    """Dequantized beforehand: the weights are rounded to the type, so it is those that are compared with."""
    packed, x = int4(512, 1024, 128, dtype), drawn(1000, 1024, dtype=dtype)
    rounded = dequantize_int4(packed, dtype)
    assert torch.equal(rounded, reference_dequantize_int4(packed, dtype))
    got, exact = w4a16_matmul(x, packed, arrivals=arrivals).double(), x.double() @ rounded.double().T
    assert (got - exact).norm() < torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
@pytest.mark.parametrize(("m", "width"), [(1, 4096), (33, 14336), (129, 300)])
def test_rows_bit_for_bit(m: int, width: int, dtype: torch.dtype) -> None:
    """Rounding is the reference's, e4m3's ties and subnormals too."""
    x = drawn(m, width, dtype=dtype)
    for name in ("quantize_int8", "quantize_fp8", "quantize_fp8_runs"):
        codes, scales = getattr(quant_rows, name)(x)
        wanted, wanted_scales = getattr(reference, name)(x)
        assert torch.equal(scales, wanted_scales)
        assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("codes", QUANTIZE)
@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (1000, 512, 1024)])
def test_channel_matmul(arrivals: Tensor, m: int, n: int, k: int, codes: torch.dtype) -> None:
    """int8 exactly; e4m3 to what the tensor core keeps of a sum of 128."""
    weight, (x, scales) = ChannelWeight(*QUANTIZE[codes](drawn(n, k))), QUANTIZE[codes](drawn(m, k))
    got = channel_matmul(x, scales, weight, None, torch.float32, arrivals=arrivals)
    sums = x.double() @ weight.codes.double().T
    if codes == torch.int8:
        assert torch.equal(got, sums.float() * weight.scales * scales[:, None])
    else:
        exact = sums * weight.scales * scales[:, None]
        assert (got.double() - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize(("m", "n", "k"), [*SHAPES, (1000, 512, 1024)])
def test_block_matmul(arrivals: Tensor, m: int, n: int, k: int) -> None:
    weight = BlockWeight(*reference.quantize_fp8_blocks(drawn(n, k)))
    x, scales = quant_rows.quantize_fp8_runs(drawn(m, k))
    got = block_matmul(x, scales, weight, None, torch.float32, arrivals=arrivals)
    wide = x.double() * scales.double().repeat_interleave(128, 1)[:, :k]
    grid = weight.scales.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    exact = wide @ (weight.codes.double() * grid).T
    assert (got.double() - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("tile", quant_matmul_8bit._INT8_TILES)
@pytest.mark.parametrize("splits", [1, 5])
def test_every_tile_of_int8(arrivals: Tensor, tile: Tile, splits: int) -> None:
    weight, (x, scales) = (
        ChannelWeight(*reference.quantize_int8(drawn(300, 2048))),
        reference.quantize_int8(drawn(300, 2048)),
    )
    got = channel_matmul(x, scales, weight, None, torch.float32, arrivals=arrivals, tile=replace(tile, splits=splits))
    sums = x.double() @ weight.codes.double().T
    assert torch.equal(got, sums.float() * weight.scales * scales[:, None])


@pytest.mark.parametrize("m", [2, 300])
def test_a_broken_row_spoils_no_other(arrivals: Tensor, m: int) -> None:
    """In tiles of few rows and of many, with a last step that is not whole."""
    x, values = drawn(m, 1040, dtype=torch.bfloat16), drawn(64, 1040)
    x[1] = torch.nan
    fp8, blocks = ChannelWeight(*reference.quantize_fp8(values)), BlockWeight(*reference.quantize_fp8_blocks(values))
    for got in (fp8_matmul(x, fp8, arrivals=arrivals), fp8_block_matmul(x, blocks, arrivals=arrivals)):
        finite = got.isfinite().all(dim=1)
        assert not finite[1]
        assert finite.sum() == m - 1


def test_sums_do_not_depend_on_timing(arrivals: Tensor) -> None:
    """The parts of a split are added in their order, whichever program is last."""
    packed, x = int4(4096, 14336, 128, torch.bfloat16), drawn(1, 14336, dtype=torch.bfloat16)
    first = w4a16_matmul(x, packed, arrivals=arrivals)
    for _ in range(200):
        assert torch.equal(w4a16_matmul(x, packed, arrivals=arrivals), first)


def test_a_row_does_not_depend_on_its_batch_when_the_tile_is_fixed(arrivals: Tensor) -> None:
    packed, x = int4(1024, 4096, 128, torch.bfloat16), drawn(40, 4096, dtype=torch.bfloat16)
    tile = replace(quant_matmul_w4a16._TILES[0], splits=4)
    batch = w4a16_matmul(x, packed, arrivals=arrivals, tile=tile)
    for row in (0, 17, 39):
        assert torch.equal(w4a16_matmul(x[row : row + 1], packed, arrivals=arrivals, tile=tile)[0], batch[row])


def test_replayed_graphs_take_new_activations(arrivals: Tensor) -> None:
    x, values = drawn(3, 2048, dtype=torch.bfloat16), drawn(512, 2048)
    packed, blocks = int4(512, 2048, 128, torch.bfloat16), BlockWeight(*reference.quantize_fp8_blocks(values))
    int8, fp8 = (ChannelWeight(*quantize(values)) for quantize in QUANTIZE.values())

    def products() -> list[Tensor]:
        return [
            w4a16_matmul(x, packed, arrivals=arrivals),
            w8a8_matmul(x, int8, arrivals=arrivals),
            fp8_matmul(x, fp8, arrivals=arrivals),
            fp8_block_matmul(x, blocks, arrivals=arrivals),
        ]

    products()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = products()
    for _ in range(3):
        x.copy_(drawn(3, 2048))
        graph.replay()
        assert all(torch.equal(got, eager) for got, eager in zip(captured, products(), strict=True))
