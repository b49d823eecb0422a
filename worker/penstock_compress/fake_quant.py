"""Linear layers that compute, while they are trained, with the very numbers that will be stored.

The forward pass rounds by the code that exports; the backward pass takes rounding for the identity (Bengio, Leonard,
Courville, 2013, arXiv 1308.3432), but for what lies beyond the grid's ends. The scales are learned too, by the gradient
that Esser et al., "Learned Step Size Quantization", 2019 (arXiv 1902.08153) give them, as logarithms of how much they
have grown: so that no scale reaches zero, and large ones and small ones move alike.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock_compress.gptq import nearest
from penstock_compress.grids import FP8_LARGEST, Grid, Rounded, Scales, find_scales, round_weight, spread
from penstock_compress.recipe import Activations


class FakeQuantLinear(nn.Module):
    """A linear layer on `grid`. Its weight [N, K] and the growth of its scales are trained; its zeros stay."""

    def __init__(self, linear: nn.Linear, grid: Grid, dtype: torch.dtype, activations: Activations | None) -> None:
        super().__init__()
        self.grid, self.dtype = grid, dtype
        self.input_grid = input_grid(grid, activations)
        found = find_scales(linear.weight.detach(), grid, dtype)
        self.weight = nn.Parameter(linear.weight.detach().float())
        self.bias = linear.bias
        self.growth = nn.Parameter(torch.zeros_like(found.scale, dtype=torch.float32))
        self.first: Tensor
        self.zero: Tensor | None
        self.register_buffer("first", found.scale.float())
        self.register_buffer("zero", found.zero)

    @property
    def scale(self) -> Tensor:
        """Float32, in the grid's shape of scales."""
        return self.first * self.growth.exp()

    @torch.no_grad()
    def rounded(self) -> Rounded:
        """The weight as it is exported, and as the forward pass has it."""
        return round_weight(self.weight, self.grid, Scales(self.scale.to(self.dtype), self.zero))

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.rounded()
        scales = spread(self.scale, self.weight.shape, self.grid).expand(self.weight.shape)
        weight = _StraightThrough.apply(self.weight, scales, rounded)  # type: ignore[no-untyped-call]  # torch's
        return functional.linear(self._input(x), weight, self.bias)

    def _input(self, x: Tensor) -> Tensor:
        """`x` [..., K] as a kernel rounds it, token by token."""
        if self.input_grid is None:
            return x
        with torch.no_grad():
            rows = nearest(x.reshape(-1, x.shape[-1]), self.input_grid, torch.float32).dequantize()
        return _Passed.apply(x, rows.view_as(x))  # type: ignore[no-untyped-call, no-any-return]  # torch's


def input_grid(grid: Grid, activations: Activations | None) -> Grid | None:
    """What the inputs of a layer on `grid` are rounded to: a scale for each token, or each run of a block's width."""
    if activations is None:
        return None
    kind = Grid(8) if activations == "int8" else Grid(8, "float")
    return replace(kind, scope="group", group=grid.block[1]) if grid.scope == "block" else kind


class _StraightThrough(torch.autograd.Function):
    """(weight [N, K], its scales [N, K], the weight rounded) to the rounded weight's values."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, rounded: Rounded) -> Tensor:
        values = rounded.dequantize()
        ctx.save_for_backward(weight, scales, values, _inside(weight, scales, rounded))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        weight, scales, values, inside = ctx.saved_tensors
        given = gradients[0]
        passed = given * inside
        return passed, (given * values - passed * weight) / scales, None


def _inside(weight: Tensor, scales: Tensor, rounded: Rounded) -> Tensor:
    """Which numbers lie within the grid's ends."""
    quotient, grid = weight / scales, rounded.grid
    if grid.kind == "float":
        return quotient.abs() <= FP8_LARGEST
    if rounded.scales.zero is not None:
        quotient = quotient + spread(rounded.scales.zero.float(), weight.shape, grid)
    return (quotient >= grid.least - 0.5) & (quotient <= grid.most + 0.5)


class _Passed(torch.autograd.Function):
    """(numbers, the same rounded) to the rounded ones; the gradient passes through."""

    @staticmethod
    def forward(_ctx: Any, _exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None
