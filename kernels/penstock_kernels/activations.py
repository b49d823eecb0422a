"""Gated activations of the feed-forward block."""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's gate: `silu(gate) * up` [tokens, width] from `gate_up` [tokens, 2 * width], gate first.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = torch.chunk(gate_up, 2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """GeGLU's gate, in its tanh form: `gelu(gate) * up`; shapes and source as `silu_mul`."""
    gate, up = torch.chunk(gate_up, 2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)
