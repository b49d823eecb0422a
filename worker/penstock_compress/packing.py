"""Rounded weights as compressed-tensors writes them, and back.

    format            tensors beside `weight_scale`
    pack-quantized    weight_packed int32 [N, ceil(K * bits / 32)], weight_shape int64 [2], weight_zero_point int32
                      [ceil(N * bits / 32), G] where the grid has zeros
    int-quantized     weight int8 [N, K]
    float-quantized   weight e4m3 [N, K]

Packed codes lie densely, low bits first, each plus `2^(bits-1)`, also across words; zeros along the outputs.
Source: github.com/vllm-project/compressed-tensors, `compressors/pack_quantized`.
"""

import json
from math import prod
from typing import Any, Final

import numpy
import torch
from torch import Tensor

from penstock_compress.grids import Grid, Rounded, Scales
from penstock_compress.kv_scales import KV, kv_cache_scheme
from penstock_compress.recipe import Activations

WORD: Final = 32  # bits
FILE_BYTES: Final = 64  # of a file of tensors beside the tensors and what it says of each, at most


def format_of(grid: Grid, activations: Activations | None) -> str:
    """The name of the format that holds this grid."""
    if grid.kind == "float":
        return "float-quantized"
    return "pack-quantized" if activations is None else "int-quantized"


def to_tensors(prefix: str, rounded: Rounded, activations: Activations | None) -> dict[str, Tensor]:
    """The tensors of the linear layer `prefix`, by name."""
    scales = {f"{prefix}.weight_scale": rounded.scales.scale.contiguous()}
    if format_of(rounded.grid, activations) != "pack-quantized":
        return {f"{prefix}.weight": rounded.codes.contiguous(), **scales}
    bits, offset = rounded.grid.bits, -rounded.grid.least
    packed = {f"{prefix}.weight_packed": pack(rounded.codes.int() + offset, bits)}
    packed[f"{prefix}.weight_shape"] = torch.tensor(rounded.codes.shape, dtype=torch.int64)
    if rounded.scales.zero is not None:
        packed[f"{prefix}.weight_zero_point"] = pack((rounded.scales.zero.int() + offset).T, bits).T.contiguous()
    return {**packed, **scales}


def from_tensors(prefix: str, tensors: dict[str, Tensor], grid: Grid, activations: Activations | None) -> Rounded:
    """What `to_tensors` made tensors of."""
    scale = tensors[f"{prefix}.weight_scale"]
    if format_of(grid, activations) != "pack-quantized":
        return Rounded(grid, tensors[f"{prefix}.weight"], Scales(scale))
    rows, columns = (int(size) for size in tensors[f"{prefix}.weight_shape"])
    codes = (unpack(tensors[f"{prefix}.weight_packed"], grid.bits, columns) + grid.least).to(torch.int8)
    zeros = tensors.get(f"{prefix}.weight_zero_point")
    zero = None if zeros is None else (unpack(zeros.T, grid.bits, rows).T + grid.least).to(torch.int8).contiguous()
    return Rounded(grid, codes, Scales(scale, zero))


def stored_bytes(prefix: str, weight: Tensor, grid: Grid) -> int:
    """What the linear layer `prefix` of this `weight` [N, K] takes in a file, packed; as it is, where `grid` cannot.

    Counts what the file says of each tensor too, and never too little. Scales are of the weight's dtype.
    """
    if not grid.takes(weight.shape[1]):
        return whole_bytes(f"{prefix}.weight", weight)
    rows, columns = weight.shape
    shares = columns // grid.group if grid.scope == "group" else 1
    words = {"packed": (rows, -(-columns * grid.bits // WORD)), "zero_point": (-(-rows * grid.bits // WORD), shares)}
    if grid.symmetric:
        del words["zero_point"]
    packed = sum(_entry(f"{prefix}.weight_{name}", shape) + 4 * prod(shape) for name, shape in words.items())
    scale = _entry(f"{prefix}.weight_scale", (rows, shares)) + rows * shares * weight.element_size()
    return packed + scale + _entry(f"{prefix}.weight_shape", (2,)) + 16


def whole_bytes(name: str, tensor: Tensor) -> int:
    """What the tensor takes in a file as it is."""
    return _entry(name, tuple(tensor.shape)) + tensor.nbytes


def _entry(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of what a file says of a tensor, at most: offsets have no more digits than these."""
    told = {"dtype": "BF16", "shape": shape, "data_offsets": (10**11, 10**11)}
    return len(json.dumps({name: told}, separators=(",", ":")))


def pack(values: Tensor, bits: int) -> Tensor:
    """Numbers 0 .. 2^bits - 1 [N, K] as int32 [N, ceil(K * bits / 32)]."""
    flat = torch.zeros(len(values), -(-values.shape[1] * bits // WORD) * WORD, dtype=torch.uint8)
    places = values.to(torch.uint8)[..., None] >> torch.arange(bits, dtype=torch.uint8) & 1
    flat[:, : values.shape[1] * bits] = places.flatten(1)
    packed = numpy.packbits(flat.numpy(), axis=1, bitorder="little").view("<i4")
    return torch.from_numpy(packed)


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """The first `columns` numbers of what `pack` packed, int32 [N, columns]."""
    places = (words[..., None] >> torch.arange(WORD, dtype=torch.int32)) & 1
    runs = places.flatten(1)[:, : columns * bits].view(len(words), columns, bits)
    return (runs << torch.arange(bits, dtype=torch.int32)).sum(-1, dtype=torch.int32)


def quantization_config(
    grids: dict[Grid, list[str]], activations: Activations | None, kept: list[str], kv: KV | None = None
) -> dict[str, Any]:
    """`quantization_config` of a config.json.

    `grids` names the layers of each grid, `kept` those left as they were, `kv` what keys and values are cached in.
    """
    groups = {
        f"group_{index}": _group(grid, targets, activations) for index, (grid, targets) in enumerate(grids.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": next((format_of(grid, activations) for grid in grids), "dense"),
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
        "kv_cache_scheme": kv_cache_scheme(kv),
    }


def _group(grid: Grid, targets: list[str], activations: Activations | None) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": _arguments(grid),
        "input_activations": None if activations is None else _activation_arguments(grid, activations),
        "output_activations": None,
        "format": format_of(grid, activations),
    }


def _arguments(grid: Grid) -> dict[str, Any]:
    told: dict[str, Any] = {
        "num_bits": grid.bits,
        "type": grid.kind,
        "symmetric": grid.symmetric,
        "strategy": grid.scope,
        "dynamic": False,
    }
    if grid.scope == "group":
        told["group_size"] = grid.group
    if grid.scope == "block":
        told["block_structure"] = list(grid.block)
    return told


def _activation_arguments(grid: Grid, activations: Activations) -> dict[str, Any]:
    kind = "int" if activations == "int8" else "float"
    told: dict[str, Any] = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    if grid.scope == "block":  # what reads blocks of weights takes runs of inputs of the same width
        told |= {"strategy": "group", "group_size": grid.block[1]}
    return told
