"""Ranges that are cut off where that loses less of a linear layer's outputs: the second half of AWQ.

A range that is cut has finer steps for what is left in it. How far each is cut is found by trying, and counted in the
outputs that the calibration's inputs give: of a weight's share w [g] and what it becomes v, (v - w) H (v - w)ᵀ with H
[g, g] the part of the inputs' mean x xᵀ that the share meets. The projections that queries and keys come from are left:
their errors multiply each other, and published AWQ leaves them too.
Source: Lin et al., "AWQ: Activation-aware Weight Quantization", 2023 (arXiv 2306.00978), and its code.
"""

from typing import Final

import torch
from torch import Tensor

from penstock_compress.grids import Grid, Rounded, Scales, better_of, find_scales, round_weight, shrunk_scales

CUTS: Final = tuple(1 - step / 20 for step in range(1, 11))  # of a range, tried beside the whole of it
LEFT: Final = ("q_proj", "k_proj", "qkv_proj")


def clipped(weight: Tensor, hessian: Tensor, grid: Grid, dtype: torch.dtype) -> Rounded:
    """`weight` [N, K] on `grid`, each range cut where that loses less; `hessian` [K, K] is the inputs' mean x xᵀ.

    Scopes of tensors and blocks, whose shares no row has to itself, are rounded as they are.
    """
    whole = weight.float()
    best = find_scales(whole, grid, dtype)
    if grid.scope in ("tensor", "block"):
        return round_weight(whole, grid, best)
    parts = _diagonal_blocks(hessian, grid)
    least = _losses(whole, parts, grid, best)
    for cut in CUTS:
        tried = shrunk_scales(whole, cut, grid, dtype)
        losses = _losses(whole, parts, grid, tried)
        best, least = better_of(losses < least, tried, best), torch.minimum(losses, least)
    return _better_rows(
        whole, hessian, round_weight(whole, grid, find_scales(whole, grid, dtype)), round_weight(whole, grid, best)
    )


def takes_clipping(name: str) -> bool:
    """Whether the linear layer of this name is one whose ranges are cut."""
    return name.rpartition(".")[2] not in LEFT


def _better_rows(weight: Tensor, hessian: Tensor, one: Rounded, other: Rounded) -> Rounded:
    """Of each row that of the two which loses less of its output, with all inputs counted together."""
    wrong = [rounded.dequantize() - weight for rounded in (one, other)]
    losses = [((each @ hessian) * each).sum(1, keepdim=True) for each in wrong]
    first = losses[0] <= losses[1]
    return Rounded(one.grid, torch.where(first, one.codes, other.codes), better_of(first, one.scales, other.scales))


def _diagonal_blocks(hessian: Tensor, grid: Grid) -> Tensor:
    """The parts of `hessian` [K, K] that shares meet, [K / g, g, g]."""
    width = grid.group if grid.scope == "group" else len(hessian)
    cut = hessian.view(len(hessian) // width, width, -1, width)
    return cut.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _losses(weight: Tensor, parts: Tensor, grid: Grid, scales: Scales) -> Tensor:
    """What each share of `weight` loses of its outputs, [N, K / g]."""
    wrong = round_weight(weight, grid, scales).dequantize() - weight
    shares = wrong.view(len(weight), len(parts), -1).transpose(0, 1)
    return ((shares @ parts) * shares).sum(-1).T
