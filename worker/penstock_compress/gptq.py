"""GPTQ: columns are rounded one after the other, and what a column loses is made up for by those that follow.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022 (arXiv 2210.17323). With `act_order` columns of large activations go first; the groups' scales are
then found beforehand, so that the file needs no order of its own.
"""

import math
from typing import Final

import torch
from torch import Tensor

from penstock_compress.errors import CalibrationUnusable
from penstock_compress.grids import Grid, Rounded, code_dtype, find_scales, round_column, round_weight

RUN: Final = 128  # columns, or a group if that is more, whose corrections are gathered before the others get them
STRIP: Final = 32  # columns at most, whose corrections are gathered before the others of the run get them
LEAST_DAMPING: Final = 1e-4
MOST_DAMPING: Final = 1.0  # of the mean diagonal; a Hessian that needs more says nothing


def gptq(
    weight: Tensor, hessian: Tensor, grid: Grid, dtype: torch.dtype, *, damping: float = 0.01, act_order: bool = False
) -> Rounded:
    """`weight` [N, K] on `grid`, its scales stored in `dtype`.

    `hessian` [K, K] is the mean of x xᵀ over calibration inputs x. `damping` is added to its diagonal, as a share of
    that diagonal's mean, and more where it is not positive definite yet. A column whose input was never other than
    zero is rounded to the nearest. Scopes of tensors and blocks are found beforehand. Raises CalibrationUnusable
    where no damping helps.
    """
    hessian = hessian.float().clone()
    silent = hessian.diagonal() == 0
    hessian.diagonal()[silent] = 1
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    if order is not None:
        hessian = hessian[order][:, order]
    columns = _Columns(weight.float(), _inverse_root(hessian, damping), grid, dtype, order)
    return columns.round()


def nearest(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Rounded:
    """`weight` [N, K] with every number rounded by itself, its scales stored in `dtype`."""
    return round_weight(weight, grid, find_scales(weight, grid, dtype))


class _Columns:
    """One pass over the columns of a weight. They lie as rows here, `left` [K, N], in the order of the pass."""

    def __init__(self, weight: Tensor, root: Tensor, grid: Grid, dtype: torch.dtype, order: Tensor | None) -> None:
        self.root, self.grid, self.dtype, self.order = root, grid, dtype, order
        self.diagonal = root.diagonal().tolist()
        self.beforehand = order is not None or grid.scope != "group"
        self.scales = find_scales(weight, grid, dtype)
        self.scale_rows = _rows(self.scales.scale, len(weight), grid)
        self.zero_rows = None if self.scales.zero is None else _rows(self.scales.zero, len(weight), grid)
        places = torch.arange(weight.shape[1]) if order is None else order
        self.shares = (places // _width(grid, weight.shape[1])).tolist()  # which of those rows a column takes
        self.left = weight.T[places]
        self.codes = torch.empty_like(self.left)

    def round(self) -> Rounded:
        columns, group = len(self.left), self.grid.group
        run = RUN if self.beforehand else group * max(1, RUN // group)
        for begin in range(0, columns, run):
            end = min(begin + run, columns)
            losses = self._run(begin, end)
            self.left[end:].addmm_(self.root[begin:end, end:].T, losses, alpha=-1)
        codes = self.codes if self.order is None else self.codes[torch.argsort(self.order)]
        return Rounded(self.grid, codes.T.to(code_dtype(self.grid)).contiguous(), self.scales)

    def _run(self, begin: int, end: int) -> Tensor:
        """Round columns `begin` to `end`; what each lost [end - begin, N], over its diagonal."""
        losses = torch.empty_like(self.left[begin:end])
        strip = STRIP if self.beforehand else math.gcd(STRIP, self.grid.group)
        for start in range(begin, end, strip):
            stop = min(start + strip, end)
            if not self.beforehand and start % self.grid.group == 0:
                self._find_group(start)
            lost = losses[start - begin : stop - begin]
            self._strip(start, lost)
            self.left[stop:end].addmm_(self.root[start:stop, stop:end].T, lost, alpha=-1)
        return losses

    def _strip(self, start: int, losses: Tensor) -> None:
        """Round as many columns from `start` as `losses` has rows, which are filled."""
        for at in range(len(losses)):
            column = start + at
            share = self.shares[column]
            values = torch.addmv(self.left[column], losses[:at].T, self.root[start:column, column], alpha=-1)
            zero = None if self.zero_rows is None else self.zero_rows[share]
            self.codes[column], rounded = round_column(values, self.scale_rows[share], zero, self.grid)
            torch.sub(values, rounded, out=losses[at]).div_(self.diagonal[column])

    def _find_group(self, begin: int) -> None:
        """Scales of the group that begins, from its columns as earlier corrections left them."""
        index = begin // self.grid.group
        found = find_scales(self.left[begin : begin + self.grid.group].T.contiguous(), self.grid, self.dtype)
        self.scales.scale[:, index] = found.scale[:, 0]
        self.scale_rows[index] = found.scale[:, 0].float()
        if self.scales.zero is not None and self.zero_rows is not None and found.zero is not None:
            self.scales.zero[:, index] = found.zero[:, 0]
            self.zero_rows[index] = found.zero[:, 0].float()


def _rows(values: Tensor, rows: int, grid: Grid) -> Tensor:
    """Scales or zeros of a weight with so many `rows`, one for each row, float32 [shares of the columns, rows]."""
    values = values.float()
    if grid.scope == "tensor":
        return values.view(1, 1).expand(1, rows)
    if grid.scope == "block":
        values = values.repeat_interleave(grid.block[0], 0)[:rows]
    return values.T.contiguous()


def _width(grid: Grid, columns: int) -> int:
    """How many neighbouring columns share a scale."""
    return {"group": grid.group, "block": grid.block[1]}.get(grid.scope, columns)


def _inverse_root(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangle U with UᵀU the inverse of the damped Hessian [K, K].

    One factoring suffices: of the Hessian with its order reversed, whose lower triangle reversed is an upper one R
    with R Rᵀ the Hessian; U is the inverse of R.
    """
    reversed_, mean = hessian.flip(0, 1), hessian.diagonal().mean()
    while True:
        damped = reversed_.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse: Tensor = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)
            return inverse.flip(0, 1)
        if damping >= MOST_DAMPING:
            raise CalibrationUnusable(
                "gives inputs whose Hessian stays singular, also when it is damped: use more text"
            )
        damping = min(max(damping, LEAST_DAMPING) * 10, MOST_DAMPING)
