"""The grids of numbers that weights are rounded to, and the rounding.

A weight [N, K] is `(code - zero) * scale`. Integer codes lie in `-2^(bits-1) .. 2^(bits-1) - 1` and zero is 0 where the
grid is symmetric, as compressed-tensors has them; float codes are e4m3, without a zero. Which numbers share a scale:

    scope     scales        shared by
    tensor    [1]           all
    channel   [N, 1]        a row
    group     [N, K / g]    g neighbours in a row
    block     [N/b, K/c]    b rows of c neighbours; the last ones may be narrower
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from penstock_compress.errors import InvalidRecipe

Scope = Literal["tensor", "channel", "group", "block"]
FP8: Final = torch.float8_e4m3fn
FP8_LARGEST: Final = torch.finfo(FP8).max
SMALLEST: Final = 1e-12  # a scale: a row of zeros has one too
SHRINKS: Final = tuple(1 - step / 50 for step in range(20))  # of a range, tried from whole to 0.62
LEAST_SHRUNK_NORM: Final = 2.4  # the power of an error that counts: large ones somewhat more than in squares


@dataclass(frozen=True, slots=True)
class Grid:
    """What a weight is rounded to. `group` counts columns; `block` is rows and columns.

    `searched`: a scale is the one of least error among shrunk ranges, else what spans the whole range.
    """

    bits: int
    kind: Literal["int", "float"] = "int"
    symmetric: bool = True
    scope: Scope = "channel"
    group: int = 128
    block: tuple[int, int] = (128, 128)
    searched: bool = False

    def __post_init__(self) -> None:
        if self.kind == "float" and (self.bits != 8 or not self.symmetric):
            raise InvalidRecipe("scheme", "floats have 8 bits, e4m3, and no zero point")
        if self.kind == "int" and not 2 <= self.bits <= 8:
            raise InvalidRecipe("bits", f"must be from 2 to 8, not {self.bits}")
        if self.scope == "group" and (self.group < 8 or self.group % 8):
            raise InvalidRecipe("group", f"must be a multiple of 8, not {self.group}")

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def most(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def takes(self, columns: int) -> bool:
        """Whether rows of so many columns can be cut into this grid's groups."""
        return self.scope != "group" or columns % self.group == 0


@dataclass(frozen=True)
class Scales:
    """Scales and zeros of a weight: `scale` in the dtype in which it is stored, `zero` int8 of its shape, or None."""

    scale: Tensor
    zero: Tensor | None = None


@dataclass(frozen=True)
class Rounded:
    """A weight on a grid. `codes` [N, K] are int8, or e4m3."""

    grid: Grid
    codes: Tensor
    scales: Scales

    def dequantize(self) -> Tensor:
        """The weight in float32 [N, K]."""
        codes = self.codes.float()
        if self.scales.zero is not None:
            codes = codes - spread(self.scales.zero.float(), codes.shape, self.grid)
        return codes * spread(self.scales.scale.float(), codes.shape, self.grid)


def spread(values: Tensor, shape: torch.Size, grid: Grid) -> Tensor:
    """`values`, one a scale, broadcast or repeated to the weight's `shape` [N, K]."""
    rows, columns = shape
    if grid.scope == "group":
        return values.repeat_interleave(grid.group, dim=1)
    if grid.scope == "block":
        height, width = grid.block
        return values.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    return values


def find_scales(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Scales:
    """Scales of `weight` [N, K] on `grid`, stored in `dtype`. A symmetric range is centred, another one holds zero."""
    best = shrunk_scales(weight, 1.0, grid, dtype)
    if not grid.searched:
        return best
    least = _errors(weight, grid, best)
    for shrink in SHRINKS[1:]:
        tried = shrunk_scales(weight, shrink, grid, dtype)
        errors = _errors(weight, grid, tried)
        best, least = better_of(errors < least, tried, best), torch.minimum(errors, least)
    return best


def shrunk_scales(weight: Tensor, share: float, grid: Grid, dtype: torch.dtype) -> Scales:
    """Scales that span so much of each range of `weight` [N, K]; what lies beyond becomes its end."""
    low, high = _ranges(weight.float(), grid)
    return _scales_of(low * share, high * share, grid, dtype)


def better_of(first: Tensor, one: Scales, other: Scales) -> Scales:
    """`one` where `first`, else `other`."""
    scale = torch.where(first, one.scale, other.scale)
    if one.zero is None or other.zero is None:
        return Scales(scale)
    return replace(one, scale=scale, zero=torch.where(first, one.zero, other.zero))


def round_weight(weight: Tensor, grid: Grid, scales: Scales) -> Rounded:
    """`weight` [N, K] to the nearest code of its scale."""
    return Rounded(grid, _codes(weight.float(), grid, scales), scales)


def round_column(column: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """(codes, values) in float32 of one column [N] whose scales and zeros are float32 [N] too."""
    quotient = column / scale
    if grid.kind == "float":
        codes = quotient.clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8).float()
        return codes, codes * scale
    shift = 0.0 if zero is None else zero
    codes = (quotient.round() + shift).clamp(grid.least, grid.most)
    return codes, (codes - shift) * scale


def code_dtype(grid: Grid) -> torch.dtype:
    return FP8 if grid.kind == "float" else torch.int8


def _codes(weight: Tensor, grid: Grid, scales: Scales) -> Tensor:
    quotient = weight / spread(scales.scale.float(), weight.shape, grid)
    if grid.kind == "float":
        return quotient.clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8)
    codes = quotient.round()
    if scales.zero is not None:
        codes = codes + spread(scales.zero.float(), weight.shape, grid)
    return codes.clamp(grid.least, grid.most).to(torch.int8)


def _ranges(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(least, largest) number of each scale's share, in the shape of the scales."""
    if grid.scope == "tensor":
        return weight.amin().view(1), weight.amax().view(1)
    if grid.scope == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if grid.scope == "group":
        runs = weight.view(len(weight), -1, grid.group)
        return runs.amin(-1), runs.amax(-1)
    blocks = _in_blocks(weight, grid.block)
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def _in_blocks(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """[blocks down, rows, blocks across, columns], filled up with zeros, which no range lacks that is centred."""
    height, width = block
    filled = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
    return filled.view(filled.shape[0] // height, height, filled.shape[1] // width, width)


def _scales_of(low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype) -> Scales:
    if grid.symmetric:
        largest = FP8_LARGEST if grid.kind == "float" else (grid.most - grid.least) / 2
        return Scales(_stored(torch.maximum(-low, high) / largest, dtype))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _stored((high - low) / (grid.most - grid.least), dtype)
    zero = (grid.least - (low / scale.float()).round()).clamp(grid.least, grid.most)
    return Scales(scale, zero.to(torch.int8))


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`scale` as it is stored, above zero."""
    stored = scale.clamp(min=SMALLEST).to(dtype)
    return torch.where(stored > 0, stored, torch.full_like(stored, torch.finfo(dtype).tiny))


def _errors(weight: Tensor, grid: Grid, scales: Scales) -> Tensor:
    """The summed error of each scale's share, in the shape of the scales."""
    wrong = (round_weight(weight, grid, scales).dequantize() - weight.float()).abs_().pow_(LEAST_SHRUNK_NORM)
    if grid.scope == "tensor":
        return wrong.sum().view(1)
    if grid.scope == "channel":
        return wrong.sum(1, keepdim=True)
    if grid.scope == "group":
        return wrong.view(len(wrong), -1, grid.group).sum(-1)
    return _in_blocks(wrong, grid.block).sum((1, 3))
