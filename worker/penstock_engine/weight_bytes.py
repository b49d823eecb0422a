"""What a model's weights take in memory, in the layout of the kernels that run them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and packed layers. What is held twice counts twice, what two layers share once."""
    plain = {(each.data_ptr(), each.numel() * each.itemsize) for each in [*model.parameters(), *_on_a_gpu(model)]}
    packed = (getattr(module, "packed", None) for module in model.modules())  # on a CPU
    return sum(size for _, size in plain) + sum(_held(each) for each in packed if each is not None)


def _held(packed: Any) -> int:
    """Of a layer's packed weight: our kernels', or a tensor in oneDNN's own layout, whose address nobody is told."""
    return packed.numel() * packed.itemsize if isinstance(packed, Tensor) else int(packed.held_bytes)


def _on_a_gpu(model: nn.Module) -> Iterator[Tensor]:
    """The tensors of rounded weights, which the products of their layers hold."""
    for module in model.modules():
        product = getattr(module, "product", None)
        if isinstance(product, partial):
            yield from (held for held in vars(product.keywords["weight"]).values() if isinstance(held, Tensor))
