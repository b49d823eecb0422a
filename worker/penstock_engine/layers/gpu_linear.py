"""Linear layers over the Triton kernels for rounded weights, put in the place of a model's own, from outside.

    quantization   kernel   weight                                      activations
    int4           W4A16    4 bits, a scale and a zero for a group      as they are
    int8           W8A8     8 bits, a scale for an output               8 bits, a scale for a token, found as it runs
    fp8            FP8      e4m3, a scale for an output                 e4m3, a scale for a token, found as it runs

Rounding is to the nearest, each layer by itself as it moves to the GPU: what was read of it is dropped before the next
one is rounded. A group is 128 columns, or 64 or 32 where those alone divide a layer's width; one that none of them
divides is kept in int8.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from penstock_kernels.checks import ShapeError
from penstock_kernels.gpu.quant_matmul_8bit import fp8_block_matmul, fp8_matmul, w8a8_matmul
from penstock_kernels.gpu.quant_matmul_w4a16 import tile_for, w4a16_matmul
from penstock_kernels.gpu.split_k import Tile, split_arrivals
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_int4 import pack_int4
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import SMALLEST, quantize_fp8, quantize_int8
from torch import Tensor, nn

from penstock_engine.config import Quantization
from penstock_engine.errors import ModelUnsupported
from penstock_engine.formats import RoundedWeight
from penstock_engine.layers.linear import Linear

# A router decides by small differences. The head is read once a step, and its rounding would show in every logit.
KEPT = {"gate", "lm_head"}
GROUPS = (128, 64, 32)  # columns that share a scale; wider ones have fewer scales to read
LEVELS = 15  # steps between the least and the largest of 4 bits

FP8_TILE = Tile(rows=64, columns=64, depth=128, num_warps=4, num_stages=4)  # of the determinism lane

Product = Callable[[Tensor], Tensor]


class RoundedLinear(nn.Module):
    """`Linear` over a rounded weight, which `product` holds. `kind` names the kernel."""

    def __init__(self, kind: str, product: Product) -> None:
        super().__init__()
        self.kind, self.product = kind, product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class Rounding:
    """How the layers of one model are rounded, and what they share.

    `deterministic`: one tile for all numbers of rows, so that a row's sums have one order. int8 sums are exact.
    """

    def __init__(self, quantization: Quantization | None, device: torch.device, *, deterministic: bool) -> None:
        self.quantization, self.device, self.deterministic = quantization, device, deterministic
        self.arrivals = split_arrivals(device)

    def linear(self, linear: Linear) -> RoundedLinear:
        bias = None if linear.bias is None else linear.bias.detach().to(self.device)
        if linear.stored:
            return self._stored(linear, bias)
        weight = linear.weight.detach().to(self.device)
        group = next((size for size in GROUPS if weight.shape[1] % size == 0), None)
        if self.quantization == "fp8":
            return self._fp8(weight, bias)
        if self.quantization == "int8" or group is None:
            return self._int8(weight, bias)
        return self._int4(weight, bias, group)

    def _stored(self, linear: Linear, bias: Tensor | None) -> RoundedLinear:
        """What a checkpoint has rounded, on the kernel of its kind. Raises ModelLoadError."""
        weight = linear.rounded()
        try:
            return self._on_its_kernel(weight, bias)
        except ShapeError as error:
            part = linear.stored[0]
            served = "groups of 32, 64, or multiples of 128 columns, evenly shared"
            raise ModelUnsupported(part.path, f"{part.name}: {error}", f"on a GPU this engine runs {served}") from None

    def _on_its_kernel(self, weight: RoundedWeight, bias: Tensor | None) -> RoundedLinear:
        if isinstance(weight, Int4Codes):
            return self._w4a16(_int4_to(weight, self.device), bias)
        codes, scales = weight.codes.to(self.device), weight.scales.to(self.device)
        if isinstance(weight, BlockWeight):
            tile = FP8_TILE if self.deterministic else None
            product = partial(
                fp8_block_matmul, weight=BlockWeight(codes, scales), bias=bias, arrivals=self.arrivals, tile=tile
            )
            return RoundedLinear("FP8 blocks", product)
        return self._of_channels(ChannelWeight(codes, scales), bias)

    def _int4(self, weight: Tensor, bias: Tensor | None, group: int) -> RoundedLinear:
        return self._w4a16(round_int4(weight, group), bias)

    def _w4a16(self, codes: Int4Codes, bias: Tensor | None) -> RoundedLinear:
        packed = pack_int4(codes)
        tile = replace(tile_for(64, packed.n, packed.k, 1), splits=1) if self.deterministic else None
        product = partial(w4a16_matmul, weight=packed, bias=bias, arrivals=self.arrivals, tile=tile)
        return RoundedLinear("W4A16", product)

    def _int8(self, weight: Tensor, bias: Tensor | None) -> RoundedLinear:
        return self._of_channels(ChannelWeight(*quantize_int8(weight)), bias)

    def _fp8(self, weight: Tensor, bias: Tensor | None) -> RoundedLinear:
        return self._of_channels(ChannelWeight(*quantize_fp8(weight)), bias)

    def _of_channels(self, weight: ChannelWeight, bias: Tensor | None) -> RoundedLinear:
        if weight.codes.dtype == torch.int8:
            return RoundedLinear("W8A8", partial(w8a8_matmul, weight=weight, bias=bias, arrivals=self.arrivals))
        tile = FP8_TILE if self.deterministic else None
        return RoundedLinear("FP8", partial(fp8_matmul, weight=weight, bias=bias, arrivals=self.arrivals, tile=tile))


def _int4_to(codes: Int4Codes, device: torch.device) -> Int4Codes:
    order = None if codes.g_idx is None else codes.g_idx.to(device)
    return Int4Codes(codes.codes.to(device), codes.scales.to(device), codes.zeros.to(device), order)


def round_int4(weight: Tensor, group: int) -> Int4Codes:
    """`weight` [N, K] in 4 bits: the range of each `group` columns, zero in it, in 15 steps; zero stays exact."""
    runs = weight.float().view(len(weight), -1, group)
    low, high = runs.amin(-1).clamp(max=0), runs.amax(-1).clamp(min=0)
    ranges = (high - low).clamp(min=SMALLEST)
    scales = ranges / torch.full_like(ranges, LEVELS)  # on a GPU a number is not divided by, but its reciprocal taken
    zeros = (-low / scales).round_()
    codes = (runs / scales[..., None]).round_().add_(zeros[..., None]).clamp_(0, LEVELS)
    return Int4Codes(codes.to(torch.uint8).flatten(1), scales, zeros.to(torch.uint8))


def round_linears(
    model: nn.Module, quantization: Quantization | None, device: torch.device, *, deterministic: bool
) -> Counter[str]:
    """Round `model`'s linear layers on `device`, one after the other; how many of each kind there are now.

    All but its head and its routers; without a `quantization` those alone that the checkpoint has rounded. The model is
    for inference only afterwards; its other layers stay where they are.
    """
    _visit(model, Rounding(quantization, device, deterministic=deterministic))
    return Counter(module.kind for module in model.modules() if isinstance(module, RoundedLinear))


def _visit(parent: nn.Module, rounding: Rounding) -> None:
    for name in [name for name, _ in parent.named_children()]:
        child = parent.get_submodule(name)
        if not isinstance(child, Linear):
            _visit(child, rounding)
        elif child.stored or (rounding.quantization is not None and name not in KEPT):
            setattr(parent, name, rounding.linear(child))
