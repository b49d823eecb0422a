"""Memory for kernels: weights on huge pages, and buffers that are used again at every step."""

import mmap

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21


def lasting(tensor: Tensor) -> Tensor:
    """A copy to be read often: on huge pages where the system has them, so that reading it misses fewer addresses."""
    size = tensor.numel() * tensor.itemsize
    if size < HUGE_PAGE:
        return tensor.clone()
    memory = mmap.mmap(-1, size + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE_PAGE
    return raw[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


class Buffers:
    """Memory by name, for what one layer hands to the next and nobody keeps.

    What `take` answers is overwritten by the next that takes the same name.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, int, int, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """[rows, width], whatever it holds."""
        view = self._views.get((name, rows, width, dtype))
        return self._view(name, rows, width, dtype) if view is None else view

    def _view(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        memory = self._memory.get((name, width, dtype))
        if memory is None or len(memory) < rows:
            memory = torch.empty(1 << (rows - 1).bit_length(), width, dtype=dtype)
            self._memory[name, width, dtype] = memory
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
        self._views[name, rows, width, dtype] = memory[:rows]
        return self._views[name, rows, width, dtype]
