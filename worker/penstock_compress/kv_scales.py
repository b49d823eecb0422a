"""Scales for keys and values that are cached in 8 bits, one of each for a block.

They are found where keys and values would be cached, so after rotation, as the compressed block makes them over the
calibration. Stored as compressed-tensors and those who read it name them, beside the block's attention.
"""

from typing import Any, Final, Literal

import torch
from torch import Tensor

from penstock_compress.grids import FP8_LARGEST, SMALLEST

KV = Literal["int8", "fp8"]
LARGEST: Final = {"int8": 127.5, "fp8": FP8_LARGEST}
"""What the largest number is divided by; an int8 grid reaches from -128 to 127."""


class KVRanges:
    """Stands where a cache would, and keeps how large keys and values get. A block's attention calls `update`."""

    def __init__(self) -> None:
        self._keys = self._values = torch.zeros(())

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take note of `keys` and `values` [sequences, heads, positions, width], and give them back as they are."""
        self._keys = torch.maximum(self._keys, keys.detach().abs().amax().float())
        self._values = torch.maximum(self._values, values.detach().abs().amax().float())
        return keys, values

    def tensors(self, kv: KV, dtype: torch.dtype) -> dict[str, Tensor]:
        """The scales [1], by their names in a block."""
        named = {"k": self._keys, "v": self._values}
        return {
            f"self_attn.{name}_scale": (largest / LARGEST[kv]).clamp(min=SMALLEST).to(dtype).view(1)
            for name, largest in named.items()
        }


def kv_cache_scheme(kv: KV | None) -> dict[str, Any] | None:
    """What a config.json says of them; None where keys and values stay as they are."""
    if kv is None:
        return None
    kind = "int" if kv == "int8" else "float"
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "tensor", "dynamic": False}
