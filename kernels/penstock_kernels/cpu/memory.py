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
    memory = mmap.mmap(-1, size + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE_PAGE
    return raw[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
