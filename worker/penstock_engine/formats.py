"""Checkpoints whose linear layers are stored in fewer bits, as the world publishes them.

    format            tensors of a layer                                                       becomes
    pack-quantized    weight_packed, weight_scale, weight_shape (weight_zero_point, _g_idx)    4 bits, or 3, or 8
    int-quantized     weight (int8), weight_scale (input_scale)                                8 bits
    float-quantized   weight (e4m3), weight_scale (input_scale)                                e4m3, rows or blocks
    mixed-precision   those of any of the three, layer by layer                                any of these
    fp8               weight (e4m3), weight_scale_inv                                          e4m3, blocks
    gptq, gptq_v2     qweight, qzeros, scales (g_idx)                                          4 bits
    awq               qweight, qzeros, scales                                                  4 bits

The first four are compressed-tensors'. A layer that has a plain `weight` is left as it is. What a checkpoint says of
the inputs is not read: each kernel rounds its inputs in its own way, or not at all. Where one says that K and V have 8
bits, they do; its scales for them are left aside, since ours are found for each token and head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from penstock_kernels.checks import ShapeError
from penstock_kernels.quant_formats import (
    BITS,
    WORD_BITS,
    Int4Codes,
    from_awq,
    from_compressed_tensors,
    from_gptq,
)
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import BLOCK
from torch import Tensor

from penstock_engine.config_fields import Fields
from penstock_engine.errors import ModelCorrupt, ModelUnsupported

RoundedWeight = Int4Codes | ChannelWeight | BlockWeight
FP8: Final = torch.float8_e4m3fn
PACKED: Final = frozenset({"weight_packed", "weight_scale", "weight_shape"})
PACKED_OR_NOT: Final = frozenset({"weight_zero_point", "weight_g_idx"})
WHOLE: Final = frozenset({"weight", "weight_scale"})
WHOLE_OR_NOT: Final = frozenset({"input_scale"})  # one for all tokens, coarser than a kernel's own
KV_SCALES: Final = frozenset({"k_scale", "v_scale"})  # of an attention


@dataclass(frozen=True, slots=True)
class Format:
    """How the rounded layers of a checkpoint are stored: their tensors, and what makes a weight [N, K] of them.

    `read` takes tensors by suffix, and raises ShapeError where they do not go together.
    """

    name: str
    needed: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Mapping[str, Tensor]], RoundedWeight]
    kv_dtype: Literal["int8", "fp8"] | None = None  # of K and V, where the checkpoint says so

    @property
    def suffixes(self) -> frozenset[str]:
        return self.needed | self.optional


def read_format(fields: Fields) -> Format | None:
    """The format that `quantization_config` names; None where there is none. Raises ModelUnsupported, ModelCorrupt."""
    told = fields.raw.get("quantization_config")
    if not told:
        return None
    if not isinstance(told, Mapping):
        raise fields.corrupt("quantization_config", "an object")
    inner = Fields(fields.path, told)
    method = told.get("quant_method")
    if method == "compressed-tensors":
        return _compressed_tensors(inner)
    if method in ("gptq", "awq") and told.get("bits", BITS) != BITS:
        raise inner.unsupported("bits", told.get("bits"), f"{method} in {BITS} bits")
    if method == "gptq":
        version = 2 if told.get("checkpoint_format") == "gptq_v2" else 1
        return Format("gptq", _of("qweight qzeros scales"), _of("g_idx"), partial(_read_gptq, version=version))
    if method == "awq" and str(told.get("version", "gemm")).lower() == "gemm":
        return Format("awq", _of("qweight qzeros scales"), frozenset(), _read_awq)
    if method == "fp8" and list(told.get("weight_block_size") or ()) == [BLOCK, BLOCK]:
        return Format("fp8", _of("weight weight_scale_inv"), frozenset(), _read_blocks)
    served = "compressed-tensors, gptq, awq (gemm), and fp8 in blocks of 128 x 128"
    raise fields.unsupported("quantization_config", dict(told), served)


@dataclass(frozen=True)
class StoredPart:
    """A layer `name` of a checkpoint as the file at `path` has it: its tensors by suffix."""

    path: Path
    name: str
    format: Format
    tensors: Mapping[str, Tensor]

    @property
    def floats(self) -> bool:
        """Whether its numbers are e4m3, which not every GPU multiplies."""
        return any(tensor.dtype == FP8 for tensor in self.tensors.values())

    def weight(self) -> RoundedWeight:
        """Raises ModelLoadError where the tensors are not all there, or do not go together."""
        if lacking := self.format.needed - self.tensors.keys():
            raise ModelCorrupt(self.path, f"lacks the tensor '{self.name}.{min(lacking)}'", "copy the folder again")
        try:
            return self.format.read(self.tensors)
        except ShapeError as error:
            served = f"a layer of {self.format.name} as it is published"
            raise ModelUnsupported(self.path, f"{self.name}: {error}", f"this engine runs {served}") from None


def stacked(parts: Sequence[StoredPart], shape: tuple[int, ...]) -> RoundedWeight:
    """The weight of `shape` whose parts lie one below the other. Raises ModelLoadError."""
    names = ", ".join(part.name for part in parts)
    try:
        weight = _stacked([part.weight() for part in parts])
    except ShapeError as error:
        raise ModelUnsupported(parts[0].path, f"{names}: {error}", "store them alike") from None
    if tuple(weight.codes.shape) != shape:
        problem = f"{names}: {list(weight.codes.shape)} in all"
        raise ModelCorrupt(parts[0].path, problem, f"by config.json it must be {list(shape)}")
    return weight


def _stacked(parts: Sequence[RoundedWeight]) -> RoundedWeight:
    first = parts[0]
    if len({type(part) for part in parts}) > 1 or len({_agreed(part) for part in parts}) > 1:
        raise ShapeError("what runs as one layer should be in one format, with one size of group")
    if isinstance(first, Int4Codes):
        return _stacked_int4([part for part in parts if isinstance(part, Int4Codes)])
    codes = torch.cat([part.codes for part in parts])
    if isinstance(first, ChannelWeight):
        return ChannelWeight(codes, torch.cat([part.scales for part in parts]))
    if any(len(part.codes) % BLOCK for part in parts[:-1]):
        raise ShapeError(f"what runs as one layer should have multiples of {BLOCK} outputs, to keep its blocks")
    return BlockWeight(codes, torch.cat([part.scales for part in parts]))


def _of(suffixes: str) -> frozenset[str]:
    return frozenset(suffixes.split())


def _compressed_tensors(told: Fields) -> Format:
    name, kv_dtype = told.raw.get("format"), _kv_dtype(told)
    if name == "pack-quantized":
        return Format(name, PACKED, PACKED_OR_NOT, _read_packed, kv_dtype)
    if name in ("int-quantized", "float-quantized"):
        return Format(name, WHOLE, WHOLE_OR_NOT, _read_whole, kv_dtype)
    if name == "mixed-precision":
        return Format(name, PACKED & WHOLE, (PACKED ^ WHOLE) | PACKED_OR_NOT | WHOLE_OR_NOT, _read_either, kv_dtype)
    raise told.unsupported("format", name, "pack-quantized, int-quantized, float-quantized and mixed-precision")


def _kv_dtype(told: Fields) -> Literal["int8", "fp8"] | None:
    scheme = told.raw.get("kv_cache_scheme")
    if not scheme:
        return None
    asked = scheme.get("num_bits"), scheme.get("type"), scheme.get("symmetric", True)
    if asked == (8, "int", True):
        return "int8"
    if asked == (8, "float", True):
        return "fp8"
    raise told.unsupported("kv_cache_scheme", scheme, "K and V in 8 bits, whole numbers or floats, without zero points")


def _read_either(tensors: Mapping[str, Tensor]) -> RoundedWeight:
    read = _read_packed if "weight_packed" in tensors else _read_whole
    if lacking := (PACKED if read is _read_packed else WHOLE) - tensors.keys():
        raise ShapeError(f"{min(lacking)} is lacking")
    return read(tensors)


def _read_packed(tensors: Mapping[str, Tensor]) -> RoundedWeight:
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    rows, columns = (int(size) for size in tensors["weight_shape"])
    zeros = tensors.get("weight_zero_point")
    bits = packed.shape[1] * WORD_BITS // columns
    if bits in (BITS, BITS - 1):
        return from_compressed_tensors(packed, scale, (rows, columns), zeros, tensors.get("weight_g_idx"), bits=bits)
    if bits == 2 * BITS and scale.shape[1] == 1 and zeros is None:
        codes = packed.contiguous().view(torch.uint8)[:, :columns].int() - 128
        return ChannelWeight(codes.to(torch.int8), scale.float().flatten())
    served = "4 bits or 3, or 8 with one scale, are run"
    raise ShapeError(f"weight_packed has {bits} bits and {scale.shape[1]} scales a row: {served}")


def _read_whole(tensors: Mapping[str, Tensor]) -> RoundedWeight:
    codes, scale = tensors["weight"], tensors["weight_scale"].float()
    rows, columns = codes.shape
    if scale.numel() in (1, rows):
        return ChannelWeight(codes, scale.flatten().expand(rows).contiguous())
    if codes.dtype == FP8 and scale.shape == (-(-rows // BLOCK), -(-columns // BLOCK)):
        return BlockWeight(codes, scale.contiguous())
    raise ShapeError(f"weight_scale is {list(scale.shape)} for a weight {list(codes.shape)}")


def _read_blocks(tensors: Mapping[str, Tensor]) -> RoundedWeight:
    return BlockWeight(tensors["weight"], tensors["weight_scale_inv"].float().contiguous())


def _read_gptq(tensors: Mapping[str, Tensor], version: int) -> RoundedWeight:
    return from_gptq(tensors["qweight"], tensors["qzeros"], tensors["scales"], tensors.get("g_idx"), version=version)


def _read_awq(tensors: Mapping[str, Tensor]) -> RoundedWeight:
    return from_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"])


def _agreed(part: RoundedWeight) -> Any:
    """What has to agree between layers that are stacked."""
    bits = part.bits if isinstance(part, Int4Codes) else None
    return part.codes.shape[1], part.codes.dtype, part.scales.shape[1:], bits


def _stacked_int4(parts: Sequence[Int4Codes]) -> Int4Codes:
    order = parts[0].column_group
    if any(not torch.equal(part.column_group, order) for part in parts):
        raise ShapeError("what runs as one layer should group its columns alike (g_idx)")
    codes, scales, zeros = (
        torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "scales", "zeros")
    )
    return Int4Codes(codes, scales, zeros, parts[0].g_idx, parts[0].bits)
