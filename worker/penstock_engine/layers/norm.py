"""RMS norm with its weight."""

import torch
from penstock_kernels import rms_norm, rms_norm_residual
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Normalises the last dimension, of `width`."""

    def __init__(self, width: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device), requires_grad=False)
        self.eps = eps

    def factors(self) -> Tensor:
        """What the normalised numbers are multiplied with, [width] in float32."""
        return self.weight.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual); `residual` is overwritten."""
        return rms_norm_residual(x, residual, self.weight, self.eps)
