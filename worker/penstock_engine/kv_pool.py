"""The memory behind the pages: K and V of every layer, in one tensor."""

import mmap
from math import prod

import numpy as np
import torch
from penstock_kernels.kv import LARGEST
from torch import Tensor

from penstock_engine.staging import send

SCALE_DTYPE = torch.float16  # in float32 they would take twice the room, and their rounding costs nothing: see `kv`


class KVPool:
    """[layers, pages, page_size, 2 * kv_heads, head_dim]: in each slot the K heads, then the V heads.

    Page 0 is the null page. K and V of a slot lie side by side, so that a layer stores both in one write and gathers
    both in one read. Memory is reserved at once, but on Linux becomes resident only as pages are first used.
    A pool of int8 or float8_e4m3fn has a scale for each slot and head, as `penstock_kernels.kv` defines them.
    """

    def __init__(
        self,
        *,
        layers: int,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        self._layers, self._kv_heads, self._head_dim = layers, kv_heads, head_dim
        self._dtype, self._device = dtype, device
        self._pages: list[Tensor]
        self._slots: list[Tensor]
        self._page_scales: list[Tensor] | None
        self._slot_scales: list[Tensor] | None
        self._moved: list[Tensor]  # what is moved as whole pages; torch indexes no 8-bit floats
        self._allocate(pages)

    def resize(self, pages: int) -> None:
        """Another number of pages, all of them zero. What was kept is lost; its memory is given back first."""
        self._pages, self._slots, self._moved = [], [], []
        self._page_scales = self._slot_scales = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
        self._allocate(pages)

    def _allocate(self, pages: int) -> None:
        heads = (self._layers, pages, self.page_size, 2 * self._kv_heads)
        data = _zeros((*heads, self._head_dim), self._dtype, self._device)
        scales = _zeros(heads, SCALE_DTYPE, self._device) if self._dtype in LARGEST else None
        self._pages = list(data.unbind(0))
        self._slots = [layer.flatten(0, 1) for layer in self._pages]
        self._page_scales = None if scales is None else list(scales.unbind(0))
        self._slot_scales = None if scales is None else [layer.flatten(0, 1) for layer in scales]
        self._moved = [data] if scales is None else [data.view(torch.int8), scales]

    def pages(self, layer: int) -> Tensor:
        """One layer, [pages, page_size, 2 * kv_heads, head_dim]."""
        return self._pages[layer]

    def slots(self, layer: int) -> Tensor:
        """The same memory as [slots, 2 * kv_heads, head_dim]; slot = page * page_size + offset."""
        return self._slots[layer]

    def page_scales(self, layer: int) -> Tensor | None:
        """One layer's scales, [pages, page_size, 2 * kv_heads]; None where K and V are kept as they are."""
        return None if self._page_scales is None else self._page_scales[layer]

    def slot_scales(self, layer: int) -> Tensor | None:
        """The same memory as [slots, 2 * kv_heads]."""
        return None if self._slot_scales is None else self._slot_scales[layer]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages, source to destination; all are read before any is written."""
        if pairs:
            source, destination = send(list(np.array(pairs).T), self._moved[0].device)
            for part in self._moved:
                part.index_copy_(1, destination, part.index_select(1, source))

    def zero(self, pages: list[int]) -> None:
        """Wipe pages whose numbers must not reach their next owner: 0 * NaN is NaN even behind a mask."""
        if pages:
            (wiped,) = send([np.array(pages)], self._moved[0].device)
            for part in self._moved:
                part.index_fill_(1, wiped, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU as fresh memory of the system, which it clears as it is used and aligns to a memory page.

    `torch.zeros` writes every byte at once; numpy's zeros lie 16 bytes beyond an alignment, which costs wide loads.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
