"""What a kernel asks of its tensors before it touches their memory: each error names the argument at fault.

ArgumentError
├── ShapeError   (ValueError) shape, stride or place of the data
└── DtypeError   (TypeError)
"""

import torch
from torch import Tensor


class ArgumentError(Exception):
    """An argument that a kernel cannot take; the message names it and says what would be right."""


class ShapeError(ArgumentError, ValueError):
    """Wrong shape, stride, device or number."""


class DtypeError(ArgumentError, TypeError):
    """Wrong element type."""


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """`tensor` has `shape`, where None stands for any length."""
    fits = len(tensor.shape) == len(shape)
    if not fits or any(want not in (None, got) for got, want in zip(tensor.shape, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ShapeError(f"{name} is {list(tensor.shape)} and should be [{wanted}]")


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise DtypeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')} and should be {wanted}")


def check_dense(name: str, tensor: Tensor, dims: int = 1) -> None:
    """The last `dims` dimensions of `tensor` lie side by side in memory; those before may have any stride."""
    step = 1
    for length, stride in zip(reversed(tensor.shape[-dims:]), reversed(tensor.stride()[-dims:]), strict=True):
        if length != 1 and stride != step:
            raise ShapeError(
                f"{name} has strides {tensor.stride()} and should be dense in its last {dims} dimension(s)"
            )
        step *= length


def check_same_device(**tensors: Tensor | None) -> None:
    """All tensors given lie where the first one does."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, reference = next(iter(present.items()))
    for name, tensor in present.items():
        if tensor.device != reference.device:
            raise ShapeError(f"{name} is on {tensor.device} and should be on {reference.device}, where {first} is")
