"""Rotary embedding: the angles of every position, computed once at load.

Sources: Su et al., "RoFormer", 2021; the frequency scaling of Llama 3.1's reference code.
"""

import math

import torch
from torch import Tensor, nn

from penstock_engine.model_config import ModelConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions, [head_dim / 2], float32."""
    plain = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / rope.factor
        case "llama3":
            return _llama3(plain, rope)


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between are blended."""
    turns = rope.original_max_positions * plain / (2 * math.pi)  # full turns within the trained context
    blend = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return blend * plain + (1 - blend) * plain / rope.factor


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines over `positions` positions, [positions, 1, head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, positions: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies).unsqueeze(1)
        self.register_buffer("cos", angles.cos().to(device, dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(device, dtype), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos.index_select(0, positions), self.sin.index_select(0, positions)
