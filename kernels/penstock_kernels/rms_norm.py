"""Root-mean-square layer norm. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False) -> Tensor:
    """`x / rms(x) * weight` over the last dimension; `x` [..., width], `weight` [width]; computed in float32.

    With `plus_one` the factor is `1 + weight`, in float32 (Gemma's checkpoints hold it so).
    """
    if plus_one:
        return F.rms_norm(x.float(), weight.shape, 1.0 + weight.float(), eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False
) -> tuple[Tensor, Tensor]:
    """Add `x` [tokens, width] into `residual` in place, then normalise the sum: (normalised, residual)."""
    residual.add_(x)
    return rms_norm(residual, weight, eps, plus_one=plus_one), residual
