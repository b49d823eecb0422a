"""What a model's weights take in memory, in the layout of the kernels that run them."""

from collections.abc import Iterator

from torch import Tensor, nn


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and packed layers; what is held twice counts twice, what two layers share once."""
    found = {(tensor.data_ptr(), tensor.numel() * tensor.itemsize) for tensor in _weights(model)}
    return sum(size for _, size in found)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    for module in model.modules():
        for held in vars(module).values():
            if type(held).__module__.startswith("penstock_kernels."):
                yield from _inside(held)


def _inside(held: object) -> Iterator[Tensor]:
    """The tensors of a packed weight: its own, and those of the records in it."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, tuple):
        for part in held:
            yield from _inside(part)
    elif type(held).__name__ != "Workspace":
        for part in vars(held).values() if hasattr(held, "__dict__") else ():
            yield from _inside(part)
