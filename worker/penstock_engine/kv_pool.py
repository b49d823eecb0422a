"""The memory behind the pages: K and V of every layer, in one tensor."""

import mmap
from math import prod

import torch
from torch import Tensor


class KVPool:
    """[layers, pages, page_size, 2 * kv_heads, head_dim]: in each slot the K heads, then the V heads.

    Page 0 is the null page. K and V of a slot lie side by side, so that a layer stores both in one write and gathers
    both in one read. Memory is reserved at once, but on Linux becomes resident only as pages are first used.
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
        self._data = _zeros((layers, pages, page_size, 2 * kv_heads, head_dim), dtype, device)
        self._pages = list(self._data.unbind(0))
        self._slots = [layer.flatten(0, 1) for layer in self._pages]

    def pages(self, layer: int) -> Tensor:
        """One layer, [pages, page_size, 2 * kv_heads, head_dim]."""
        return self._pages[layer]

    def slots(self, layer: int) -> Tensor:
        """The same memory as [slots, 2 * kv_heads, head_dim]; slot = page * page_size + offset."""
        return self._slots[layer]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages, source to destination; all are read before any is written."""
        if pairs:
            source, destination = torch.tensor(pairs, device=self._data.device).unbind(1)
            self._data.index_copy_(1, destination, self._data.index_select(1, source))

    def zero(self, pages: list[int]) -> None:
        """Wipe pages whose numbers must not reach their next owner: 0 * NaN is NaN even behind a mask."""
        if pages:
            self._data.index_fill_(1, torch.tensor(pages, device=self._data.device), 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU as fresh memory of the system, which it clears as it is used and aligns to a memory page.

    `torch.zeros` writes every byte at once; numpy's zeros lie 16 bytes beyond an alignment, which costs wide loads.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
