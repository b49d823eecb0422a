"""Rows to sample from, drawn at random but the same each time."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The arguments of `sample`."""

    logits: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    output_index: Tensor
    choice: Tensor


def rows_of(count: int, vocabulary: int, filters: str, *, spread: float = 3.0, coldest: float = 0.0) -> Rows:
    """`count` rows under the filters named: k, p, m (min-p). One row in 8 is free of them, one in 16 is coldest."""
    generator = torch.Generator().manual_seed(count + vocabulary + len(filters))

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    free = torch.arange(count) % 8 == 7
    temperature = uniform(0.3, 1.6)
    temperature[5::16] = coldest
    return Rows(
        logits=torch.randn(count, vocabulary, generator=generator) * spread,
        temperature=temperature,
        top_k=torch.where(free | ("k" not in filters), 0, whole(1, min(vocabulary, 40) + 2)),
        top_p=torch.where(free | ("p" not in filters), 1.0, uniform(0.05, 0.999)),
        min_p=torch.where(free | ("m" not in filters), 0.0, uniform(0.0, 0.3)),
        seed=whole(-(2**63), 2**63 - 1),
        output_index=whole(0, 5000),
        choice=whole(0, 8),
    )
