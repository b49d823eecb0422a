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
from penstock_kernels.gpu.quant_matmul_8bit import fp8_matmul, w8a8_matmul
from penstock_kernels.gpu.quant_matmul_w4a16 import tile_for, w4a16_matmul
from penstock_kernels.gpu.split_k import Tile, split_arrivals
from penstock_kernels.quant_formats import Int4Codes
from penstock_kernels.quant_int4 import pack_int4
from penstock_kernels.quant_matmul import ChannelWeight
from penstock_kernels.quant_rows import SMALLEST, quantize_fp8, quantize_int8
from torch import Tensor, nn

from penstock_engine.config import Quantization
from penstock_engine.layers.linear import Linear

# A router decides by small differences. The head is read once a step, and its rounding would show in every logit.
KEPT = {"gate", "lm_head"}
GROUPS = (128, 64, 32)  # columns that share a scale; wider ones have fewer scales to read
LEVELS = 15  # steps between the least and the largest of 4 bits

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

    def __init__(self, quantization: Quantization, device: torch.device, *, deterministic: bool) -> None:
        self.quantization, self.device, self.deterministic = quantization, device, deterministic
        self.arrivals = split_arrivals(device)

    def linear(self, linear: Linear) -> RoundedLinear:
        weight = linear.weight.detach().to(self.device)
        bias = None if linear.bias is None else linear.bias.detach().to(self.device)
        group = next((size for size in GROUPS if weight.shape[1] % size == 0), None)
        if self.quantization == "fp8":
            return self._fp8(weight, bias)
        if self.quantization == "int8" or group is None:
            return self._int8(weight, bias)
        return self._int4(weight, bias, group)

    def _int4(self, weight: Tensor, bias: Tensor | None, group: int) -> RoundedLinear:
        packed = pack_int4(round_int4(weight, group))
        tile = replace(tile_for(64, packed.n, packed.k, 1), splits=1) if self.deterministic else None
        product = partial(w4a16_matmul, weight=packed, bias=bias, arrivals=self.arrivals, tile=tile)
        return RoundedLinear("W4A16", product)

    def _int8(self, weight: Tensor, bias: Tensor | None) -> RoundedLinear:
        codes = ChannelWeight(*quantize_int8(weight))
        return RoundedLinear("W8A8", partial(w8a8_matmul, weight=codes, bias=bias, arrivals=self.arrivals))

    def _fp8(self, weight: Tensor, bias: Tensor | None) -> RoundedLinear:
        codes = ChannelWeight(*quantize_fp8(weight))
        tile = Tile(rows=64, columns=64, depth=128, num_warps=4, num_stages=4) if self.deterministic else None
        return RoundedLinear("FP8", partial(fp8_matmul, weight=codes, bias=bias, arrivals=self.arrivals, tile=tile))


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
    model: nn.Module, quantization: Quantization, device: torch.device, *, deterministic: bool
) -> Counter[str]:
    """Round `model`'s linear layers on `device`, one after the other; how many of each kind there are now.

    All but its head and its routers. The model is for inference only afterwards; its other layers stay where they are.
    """
    _visit(model, Rounding(quantization, device, deterministic=deterministic))
    return Counter(module.kind for module in model.modules() if isinstance(module, RoundedLinear))


def _visit(parent: nn.Module, rounding: Rounding) -> None:
    for name in [name for name, _ in parent.named_children()]:
        child = parent.get_submodule(name)
        if not isinstance(child, Linear):
            _visit(child, rounding)
        elif name not in KEPT:
            setattr(parent, name, rounding.linear(child))
