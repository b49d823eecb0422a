"""What a model's weights take in memory, in the layout of the kernels that run them."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and packed layers. What is held twice counts twice, what two layers share once."""
    found = {(tensor.data_ptr(), tensor.numel() * tensor.itemsize) for tensor in _weights(model)}
    return sum(size for _, size in found)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    for module in model.modules():
        yield from _tensors(getattr(module, "packed", None))  # on a CPU
        product = getattr(module, "product", None)  # on a GPU
        if isinstance(product, partial):
            yield from _tensors(product.keywords["weight"])


def _tensors(packed: object) -> Iterator[Tensor]:
    """Those of a packed weight, and of the records in it."""
    for held in packed if isinstance(packed, tuple) else vars(packed).values() if packed is not None else ():
        if isinstance(held, Tensor):
            yield held
        elif isinstance(held, tuple):
            yield from _tensors(held)
