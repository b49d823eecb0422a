"""What a kernel is measured on: a call of ours and one of a peer that computes the same from the same numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Contest(NamedTuple):
    """Two ways to the same result. Each may be called again and again; what it overwrites is its own."""

    ours: Callable[[], Tensor]
    peer: Callable[[], Tensor]


@dataclass(frozen=True)
class MeasureCase:
    """One kernel at one size.

    `moved` is the fewest bytes of device memory that the work can do with: each input read once, each output written
    once. `flops` counts a multiply-add as two; 0 where bytes alone decide. `arithmetic` names the operands' dtype, by
    which the device's ceiling goes.
    """

    kernel: str
    size: str
    peer: str
    moved: int
    flops: int
    make: Callable[[], Contest]
    arithmetic: str = "bfloat16"


@dataclass(frozen=True)
class Sizes:
    """The model whose layers are measured (Llama-3.1-8B's shape unless told), and the batches."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 128_256
    tokens: tuple[int, ...] = (1, 64, 8192)
    sampled: tuple[int, ...] = (1, 64, 256)
    adapted: tuple[tuple[int, int], ...] = ((64, 8), (8192, 4))  # tokens, segments
    decoding: tuple[tuple[int, int], ...] = ((1, 1024), (64, 1024), (64, 4096), (256, 1024))  # runs, context
    prefill: tuple[int, ...] = (2048, 8192)
    products: tuple[int, ...] = (1, 8, 64, 1024, 4096)  # rows
    weight: tuple[int, int] = (8192, 8192)  # N, K

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Fresh normal numbers: zeros would hide what was not written, and can run faster than data does."""
        return torch.randn(*shape, device=self.device).to(dtype or self.dtype)

    def below(self, limit: int, count: int) -> Tensor:
        """Whole numbers from 0 to `limit`, int64 [count]."""
        return torch.randint(0, limit, (count,), device=self.device)

    @property
    def element(self) -> int:
        """Bytes."""
        return self.dtype.itemsize
