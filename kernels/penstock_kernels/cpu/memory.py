"""Memory for weights."""

import mmap

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21


def lasting(tensor: Tensor) -> Tensor:
    """A copy to be read often: on huge pages where the system has them, so that reading it misses fewer addresses."""
    size = tensor.numel() * tensor.itemsize
    if size < HUGE_PAGE:
        return tensor.clone()
    memory = _own_memory(size + HUGE_PAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE_PAGE
    return raw[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _own_memory(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Python's default is memory to share, which Linux keeps on small pages whatever is advised.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
