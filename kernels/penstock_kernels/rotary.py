"""Rotary position embedding. Source: Su et al., "RoFormer", 2021, in the half-split layout of Llama checkpoints."""

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate each head of `x` [tokens, heads, head_dim] in place by its token's angles.

    `cos` and `sin` are [tokens, 1, head_dim / 2]: dimension i is paired with dimension i + head_dim / 2. Where a model
    rotates only the first dimensions of a head, `x` is the view of those.
    """
    first, second = torch.chunk(x, 2, dim=-1)
    turned = torch.cat((torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)), -1)
    x.copy_(turned)


def rotary_at(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `rotary`, by tables over all positions: `cos` and `sin` [positions, 1, head_dim / 2], `positions` [tokens]."""
    rotary(x, cos.index_select(0, positions), sin.index_select(0, positions))
