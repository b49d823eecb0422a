"""The arrays of a step on their way to the device: all of them in one copy, which nobody waits for.

A copy from memory that the system may move makes the host wait for everything that the device has to do; eight small
copies take eight times the launch of one. So the arrays are laid side by side in pinned memory, which torch keeps from
being written again before the copy has ended.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16  # bytes: Triton compiles loads of this width for addresses that are its multiples, and others otherwise

Array = NDArray[Any]


def send(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """`arrays` as tensors on `device`; on a CPU they are the arrays' own memory."""
    if device.type == "cpu":
        return [torch.from_numpy(each) for each in arrays]
    landed = torch.empty(staged_bytes(arrays), dtype=torch.uint8, device=device)
    return send_into(landed, arrays)


def send_into(landed: Tensor, arrays: Sequence[Array]) -> list[Tensor]:
    """Copy `arrays` into the bytes `landed`, from their begin on; the tensors there.

    Arrays of the same shapes and types come to lie at the same places.
    """
    host = torch.empty(staged_bytes(arrays), dtype=torch.uint8, pin_memory=landed.is_cuda)
    written = host.numpy()
    for begin, each in zip(_begins(arrays), arrays, strict=True):
        written[begin : begin + each.nbytes] = np.ascontiguousarray(each).view(np.uint8).ravel()
    landed[: len(host)].copy_(host, non_blocking=True)
    return [
        landed[begin : begin + each.nbytes].view(torch.from_numpy(each[:0]).dtype).view(each.shape)
        for begin, each in zip(_begins(arrays), arrays, strict=True)
    ]


def staged_bytes(arrays: Sequence[Array]) -> int:
    """Room for `arrays`, each at a multiple of ALIGNMENT."""
    return sum(_room(each) for each in arrays)


def _begins(arrays: Sequence[Array]) -> list[int]:
    return list(accumulate((_room(each) for each in arrays[:-1]), initial=0))


def _room(array: Array) -> int:
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT
