"""Attention layers as the kernels are compiled for them: a variant is what one compiled kernel is good for."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from penstock_kernels.kv import LARGEST


@dataclass(frozen=True, slots=True)
class Variant:
    """An attention layer as the kernels are compiled for it; the first defaults are Llama-3.1-8B's."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    pool: torch.dtype | None = None  # of 8 bits, if quantized
    windowed: bool = False
    capped: bool = False
    page_size: int = 16

    @classmethod
    def of(cls, q: Tensor, pool: Tensor, window: int | None, softcap: float | None, scales: Tensor | None) -> "Variant":
        """The layer that these arguments of `paged_attention` belong to."""
        return cls(
            heads=q.shape[1],
            kv_heads=pool.shape[2] // 2,
            head_dim=q.shape[2],
            dtype=q.dtype,
            pool=None if scales is None else pool.dtype,
            windowed=window is not None,
            capped=softcap is not None,
            page_size=pool.shape[1],
        )

    @property
    def group(self) -> int:
        """Query heads that share a K/V head."""
        return self.heads // self.kv_heads

    @property
    def dim_pad(self) -> int:
        """`head_dim` as tiles hold it: a power of two, and no less than a product takes."""
        return max(16, int(triton.next_power_of_2(self.head_dim)))

    @property
    def plain(self) -> bool:
        """Neither window nor soft cap nor quantized pool, each of which takes registers."""
        return not (self.windowed or self.capped or self.pool)

    def constants(self) -> dict[str, object]:
        return {
            "WINDOWED": self.windowed,
            "CAPPED": self.capped,
            "QUANTIZED": self.pool is not None,
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "PAGE": self.page_size,
            "HEAD_DIM": self.head_dim,
            "DIM_PAD": self.dim_pad,
        }

    def label(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        pool = "" if self.pool is None else ", pool " + str(self.pool).removeprefix("torch.")
        options = ", window" * self.windowed + ", softcap" * self.capped
        return f"[{self.heads}/{self.kv_heads} x {self.head_dim}, {dtype}{pool}{options}]"


VARIANTS = (
    Variant(),
    Variant(dtype=torch.float16),
    Variant(dtype=torch.float32),
    *(Variant(pool=dtype) for dtype in LARGEST),
    Variant(windowed=True),
    Variant(heads=16, head_dim=256, windowed=True, capped=True),  # Gemma 2 9B
    Variant(heads=14, kv_heads=2, head_dim=64),  # Qwen2 0.5B
    Variant(heads=32, kv_heads=32, head_dim=96),  # Phi-3 mini
    Variant(heads=4, kv_heads=2, head_dim=16, dtype=torch.float32),
)
