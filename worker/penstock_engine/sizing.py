"""How many pages the KV pool has."""

import os
from dataclasses import dataclass
from typing import Self

import torch

from penstock_engine.config import EngineConfig
from penstock_engine.errors import InvalidConfig
from penstock_engine.kv_pool import KVPool
from penstock_engine.model_config import ModelConfig

HOST_SHARE = 0.25  # of free memory: a worker's machine runs more than its engine
DEVICE_SHARE = 0.9  # of what is free once the weights are loaded


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one page holds."""

    layers: int
    page_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: ModelConfig, page_size: int, dtype: torch.dtype) -> Self:
        return cls(model.layers, page_size, model.kv_heads, model.head_dim, dtype)

    @property
    def page_bytes(self) -> int:
        return self.layers * self.page_size * 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


def pool_pages(config: EngineConfig, shape: KVShape, max_model_len: int, device: torch.device) -> int:
    """Pages that requests can have. Raises InvalidConfig when the memory given holds none."""
    if config.kv_pages is not None:
        return config.kv_pages
    pages_per_request = -(-max_model_len // config.page_size)
    most_useful = 2 * config.max_running * pages_per_request  # all running at full length, and as much cache again
    memory = config.kv_bytes if config.kv_bytes is not None else _free_memory(device)
    pages = min(memory // shape.page_bytes - 1, most_useful)
    if pages < 1:
        raise InvalidConfig("kv_bytes", f"{memory} bytes hold no two pages of {shape.page_bytes} bytes; give more")
    return pages


def make_pool(shape: KVShape, pages: int, device: torch.device) -> KVPool:
    """A pool of `pages` and the null page."""
    return KVPool(
        layers=shape.layers,
        pages=pages + 1,
        page_size=shape.page_size,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        device=device,
    )


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE)
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * HOST_SHARE)
