"""How much of the machine an engine takes: pages of KV, length of context, threads."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from penstock_kernels.kv import LARGEST

from penstock_engine.config import EngineConfig
from penstock_engine.errors import InvalidConfig
from penstock_engine.kv_pool import SCALE_DTYPE, KVPool
from penstock_engine.model_config import ModelConfig

HOST_SHARE = 0.25  # of free memory: a worker's machine runs more than its engine
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# Up to this width one thread does it: at width 128 and 64 rows a second one saves a fifth on 2 idle AMD EPYC cores,
# and on busy ones its barriers cost several times the step.
SINGLE_THREAD_HIDDEN_SIZE = 256


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one page holds. `dtype` is that of K and V in the pool."""

    layers: int
    page_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig, dtype: torch.dtype) -> Self:
        """`dtype` is that of the model."""
        kept = KV_DTYPES.get(config.kv_dtype, dtype)
        return cls(model.layers, config.page_size, model.kv_heads, model.head_dim, kept)

    @property
    def page_bytes(self) -> int:
        scale = SCALE_DTYPE.itemsize if self.dtype in LARGEST else 0
        return self.layers * self.page_size * 2 * self.kv_heads * (self.head_dim * self.dtype.itemsize + scale)


def device_of(config: EngineConfig) -> torch.device:
    """The device to run on. Raises InvalidConfig when this machine has none of that name."""
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise InvalidConfig("device", f"{config.device!r} cannot be used here ({cause})") from cause
    return device


def pool_pages(config: EngineConfig, shape: KVShape, max_model_len: int, free: Callable[[], int]) -> int:
    """Pages that requests can have; `free` finds the bytes for them, where `config` gives neither pages nor bytes.

    Raises InvalidConfig when the memory given holds none.
    """
    if config.kv_pages is not None:
        return config.kv_pages
    pages_per_request = -(-max_model_len // config.page_size)
    most_useful = 2 * config.max_running * pages_per_request  # all running at full length, and as much cache again
    memory = config.kv_bytes if config.kv_bytes is not None else free()
    pages = min(memory // shape.page_bytes - 1, most_useful)
    if pages < 1:
        raise InvalidConfig("kv_bytes", f"{memory} bytes hold no two pages of {shape.page_bytes} bytes; give more")
    return pages


def resized(config: EngineConfig, shape: KVShape, max_model_len: int, kv_bytes: int, *, now: int) -> int:
    """Pages in `kv_bytes`, but no fewer than the longest request takes, or `now`, where that is less already.

    Raises InvalidConfig when the bytes hold none.
    """
    pages = pool_pages(replace(config, kv_pages=None, kv_bytes=kv_bytes), shape, max_model_len, lambda: kv_bytes)
    return max(pages, min(-(-max_model_len // config.page_size), now))


def host_memory() -> int:
    """What an engine on a CPU takes for its pool: a share of what is free."""
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * HOST_SHARE)


def context_length(config: EngineConfig, model: ModelConfig) -> int:
    """Tokens of prompt and output together. Raises InvalidConfig when more is asked for than the model has."""
    wanted = config.max_model_len or model.max_positions
    if wanted > model.max_positions:
        raise InvalidConfig("max_model_len", f"is {wanted}; this model has positions for {model.max_positions}")
    return wanted


def thread_count(config: EngineConfig, model: ModelConfig) -> int:
    """Threads for the products on the CPU."""
    if config.threads is not None:
        return config.threads
    return 1 if model.hidden_size <= SINGLE_THREAD_HIDDEN_SIZE else torch.get_num_threads()


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
