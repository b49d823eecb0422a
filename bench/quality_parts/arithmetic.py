"""What a checkpoint's format says that it takes, to hold its files against."""

import json
from pathlib import Path
from typing import Any, Final

from penstock_compress.source import Source, linear_layers

SCALE_BYTES: Final = 2  # in the type of the model


def expected_bytes(source: Path, folder: Path) -> float:
    """Codes, scales and zero points of the rounded layers, and the rest as it was; by `folder`'s own config.json.

    Headers of files, and padding, are not counted.
    """
    opened = Source(source)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    total: float = sum(_bytes(shape) for shape in _shapes(opened, opened.outside()))
    for block in range(opened.blocks):
        tensors = opened.block(block)
        rounded = {f"{name}.weight" for name in linear_layers(tensors)}
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            total += _rounded_bytes(shape, group["weights"]) if name in rounded else _bytes(shape)
    return total


def _rounded_bytes(shape: tuple[int, ...], told: dict[str, Any]) -> float:
    rows, columns = shape
    scales: int = {
        "tensor": 1,
        "channel": rows,
        "group": rows * columns // told.get("group_size", columns),
        "block": -(-rows // 128) * -(-columns // 128),
    }[told["strategy"]]
    bits = int(told["num_bits"])
    zeros = 0 if told["symmetric"] else scales * bits / 8
    return rows * columns * bits / 8 + scales * SCALE_BYTES + zeros


def _shapes(source: Source, names: list[str]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in source.read(names).values()]


def _bytes(shape: tuple[int, ...]) -> int:
    count = SCALE_BYTES
    for size in shape:
        count *= size
    return count
