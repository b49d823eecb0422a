"""Rotary embedding: the angles of every position, computed once at load.

Sources: Su et al., "RoFormer", 2021; the frequency scaling of Llama 3.1's reference code; Peng et al., "YaRN", 2023;
Ding et al., "LongRoPE", 2024.

A token's K stays in the cache, so its angle may depend on its own position and on nothing that comes later. The two
scalings that are defined by the length of the whole sequence are therefore read so: `dynamic` turns each position as
the last one of a sequence that ends there (which is what decoding one token at a time does elsewhere); `longrope`,
which jumps from one set of factors to another, uses the long set when the engine serves contexts beyond the trained
length, and the short set when it does not.
"""

import math

import torch
from torch import Tensor, nn

from penstock_engine.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int, positions: int) -> Tensor:
    """Radians per position of each rotated pair of dimensions, float32, [pairs]; [positions, pairs] for dynamic."""
    dims = rope.dims(head_dim)
    exponents = torch.arange(0, dims, 2, dtype=torch.float32) / dims
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / rope.factor
        case "dynamic":
            return _dynamic(exponents, rope, dims, positions)
        case "llama3":
            return _llama3(plain, rope)
        case "yarn":
            return _yarn(plain, rope, dims)
        case "longrope":
            factors = rope.long_factors if positions > rope.original_max_positions else rope.short_factors
            return plain / torch.tensor(factors)


def _dynamic(exponents: Tensor, rope: RopeConfig, dims: int, positions: int) -> Tensor:
    """The base grows with the length (reads `factor`, `original_max_positions`)."""
    lengths = torch.arange(1, positions + 1, dtype=torch.float32).clamp(min=rope.original_max_positions)
    stretch = rope.factor * lengths / rope.original_max_positions - (rope.factor - 1)
    bases = rope.theta * stretch ** (dims / (dims - 2))
    return 1.0 / bases.unsqueeze(1) ** exponents


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between (`low_freq_factor` to `high_`) are blended."""
    turns = rope.original_max_positions * plain / (2 * math.pi)  # full turns within the trained context
    blend = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return blend * plain + (1 - blend) * plain / rope.factor


def _yarn(plain: Tensor, rope: RopeConfig, dims: int) -> Tensor:
    """As llama3, but the blend is linear in the index of the pair, between `beta_fast` and `beta_slow` turns."""

    def pair_that_turns(times: float) -> float:
        return dims * math.log(rope.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001  # equal ends make a step
    slowed = ((torch.arange(dims // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return (1 - slowed) * plain + slowed * plain / rope.factor


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines over `positions` positions, [positions, 1, rotated dimensions / 2]."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, rope: RopeConfig, head_dim: int, positions: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        places = torch.arange(positions, dtype=torch.float32).unsqueeze(1)
        angles = (places * inverse_frequencies(rope, head_dim, positions)).unsqueeze(1)
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        self.register_buffer("cos", cos.to(device, dtype), persistent=False)
        self.register_buffer("sin", sin.to(device, dtype), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos.index_select(0, positions), self.sin.index_select(0, positions)


class AngleTables(nn.Module):
    """`RotaryEmbedding`'s tables, whole: compiled kernels find each token's row by its position."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.tables = rotary.cos.contiguous(), rotary.sin.contiguous()

    def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return self.tables
