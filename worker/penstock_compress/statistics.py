"""What calibration keeps of the inputs of a linear layer: enough for every method, and none of the inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class InputStatistics:
    """Of inputs x [K]: `hessian` [K, K] the sum of x xᵀ, `sums` [K] of |x|, `largest` [K] of |x|, all float32."""

    hessian: Tensor
    sums: Tensor
    largest: Tensor
    rows: int = 0

    @classmethod
    def of_width(cls, columns: int) -> "InputStatistics":
        return cls(torch.zeros(columns, columns), torch.zeros(columns), torch.zeros(columns))

    def add(self, x: Tensor) -> None:
        """Count the inputs `x` [..., K]."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        with multiplied_as(x.dtype):
            self.hessian.addmm_(rows.T, rows)
        sizes = rows.abs()
        self.sums += sizes.sum(0)
        torch.maximum(self.largest, sizes.amax(0), out=self.largest)
        self.rows += len(rows)

    @property
    def mean_hessian(self) -> Tensor:
        return self.hessian / max(self.rows, 1)

    @property
    def mean_size(self) -> Tensor:
        """The mean of |x|, [K]."""
        return self.sums / max(self.rows, 1)


@contextmanager
def multiplied_as(dtype: torch.dtype) -> Iterator[None]:
    """Products of float32 numbers whose values are those of `dtype`.

    Those of bfloat16 are exact in float32, and sums stay in float32, so the CPU's instructions for bfloat16 may do
    them: the same result, at over three times the speed where there are such instructions.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # which torch adds as it is imported
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if dtype == torch.bfloat16 else before
    try:
        yield
    finally:
        matmul.fp32_precision = before


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """The mean over inputs x of |difference x|², from their mean x xᵀ; `difference` [N, K]."""
    return float(((difference @ hessian) * difference).sum())
