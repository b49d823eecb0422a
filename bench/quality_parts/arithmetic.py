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
    groups = list(config["config_groups"].values())
    total: float = sum(_bytes(shape) for shape in _shapes(opened, opened.outside()))
    for block in range(opened.blocks):
        tensors = opened.block(block)
        layers = {f"{name}.weight": opened.prefix(block) + name for name in linear_layers(tensors)}
        for name, tensor in tensors.items():
            told = _weights_of(layers.get(name), groups, config["ignore"])
            total += _bytes(tuple(tensor.shape)) if told is None else _rounded_bytes(tuple(tensor.shape), told)
    return total


def _weights_of(layer: str | None, groups: list[dict[str, Any]], ignored: list[str]) -> dict[str, Any] | None:
    """What is told of a layer's weights; None where it stays as it is."""
    if layer is None or layer in ignored:
        return None
    told: dict[str, Any] = next(
        group["weights"] for group in groups if layer in group["targets"] or "Linear" in group["targets"]
    )
    return told


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
