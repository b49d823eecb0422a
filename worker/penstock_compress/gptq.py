"""GPTQ: columns are rounded one after the other, and what a column loses is made up for by those that follow.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022 (arXiv 2210.17323). With `act_order` columns of large activations go first; the groups' scales are
then found beforehand, so that the file needs no order of its own.
"""

from typing import Final

import torch
from torch import Tensor

from penstock_compress.grids import Grid, Rounded, Scales, code_dtype, find_scales, round_column, round_weight, spread

RUN: Final = 128  # columns, or a group if that is more, whose corrections are gathered before the others get them
MOST_DAMPING: Final = 1.0  # of the mean diagonal; a Hessian that needs more says nothing


def gptq(
    weight: Tensor, hessian: Tensor, grid: Grid, dtype: torch.dtype, *, damping: float = 0.01, act_order: bool = False
) -> Rounded:
    """`weight` [N, K] on `grid`, its scales stored in `dtype`.

    `hessian` [K, K] is the mean of x xᵀ over calibration inputs x. `damping` is added to its diagonal, as a share of
    that diagonal's mean, and more where it is not positive definite yet. A column whose input was never other than
    zero is rounded to the nearest. Scopes of tensors and blocks are found beforehand.
    """
    weight, hessian = weight.float().clone(), hessian.float().clone()
    silent = hessian.diagonal() == 0
    hessian.diagonal()[silent] = 1
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    beforehand = act_order or grid.scope != "group"
    scales = find_scales(weight, grid, dtype)
    if order is not None:
        weight, hessian = weight[:, order], hessian[order][:, order]
    columns = _Columns(weight, _upper_root(hessian, damping), grid, scales, dtype, order, beforehand)
    codes, scales = columns.round()
    if order is not None:
        codes = codes[:, torch.argsort(order)]
    return Rounded(grid, codes.to(code_dtype(grid)), scales)


def nearest(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Rounded:
    """`weight` [N, K] with every number rounded by itself, its scales stored in `dtype`."""
    return round_weight(weight, grid, find_scales(weight, grid, dtype))


class _Columns:
    """One pass over the columns of a weight, in the order in which they lie."""

    def __init__(
        self,
        weight: Tensor,
        root: Tensor,
        grid: Grid,
        scales: Scales,
        dtype: torch.dtype,
        order: Tensor | None,
        beforehand: bool,
    ) -> None:
        self.weight, self.root, self.grid, self.dtype = weight, root, grid, dtype
        self.order, self.beforehand = order, beforehand
        self.scale, self.zero = scales.scale, scales.zero
        self.codes = torch.empty_like(weight)
        self._spread(scales)

    def round(self) -> tuple[Tensor, Scales]:
        columns, group = self.weight.shape[1], self.grid.group
        run = RUN if self.beforehand else group * max(1, RUN // group)
        for begin in range(0, columns, run):
            end = min(begin + run, columns)
            losses = self._run(begin, end)
            self.weight[:, end:] -= losses @ self.root[begin:end, end:]
        return self.codes, Scales(self.scale, self.zero)

    def _run(self, begin: int, end: int) -> Tensor:
        """Round columns `begin` to `end`; what each lost [N, end - begin], over its diagonal."""
        losses = torch.empty_like(self.weight[:, begin:end])
        for column in range(begin, end):
            if not self.beforehand and column % self.grid.group == 0:
                self._find_group(column)
            values = self.weight[:, column]
            zero = None if self.zero_columns is None else self.zero_columns[:, column]
            codes, rounded = round_column(values, self.scale_columns[:, column], zero, self.grid)
            self.codes[:, column] = codes
            loss = (values - rounded) / self.root[column, column]
            self.weight[:, column:end] -= torch.outer(loss, self.root[column, column:end])
            losses[:, column - begin] = loss
        return losses

    def _find_group(self, begin: int) -> None:
        """Scales of the group that begins, from its columns as earlier corrections left them."""
        end, index = begin + self.grid.group, begin // self.grid.group
        found = find_scales(self.weight[:, begin:end].contiguous(), self.grid, self.dtype)
        self.scale[:, index] = found.scale[:, 0]
        self.scale_columns[:, begin:end] = found.scale.float()
        if self.zero is not None and self.zero_columns is not None and found.zero is not None:
            self.zero[:, index] = found.zero[:, 0]
            self.zero_columns[:, begin:end] = found.zero.float()

    def _spread(self, scales: Scales) -> None:
        """A scale and a zero for each column as it lies, float32 [N, K]."""
        self.scale_columns = self._lying(scales.scale)
        self.zero_columns = None if scales.zero is None else self._lying(scales.zero)

    def _lying(self, values: Tensor) -> Tensor:
        shape = self.weight.shape
        columns = spread(values.float(), shape, self.grid).expand(shape)
        return columns[:, self.order] if self.order is not None else columns.clone()


def _upper_root(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse [K, K]."""
    mean = hessian.diagonal().mean()
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            root: Tensor
            root, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return root
        if damping >= MOST_DAMPING:
            raise ArithmeticError("the calibration inputs' Hessian stays singular, also when it is damped")
        damping = min(max(damping, 1e-4) * 10, MOST_DAMPING)
