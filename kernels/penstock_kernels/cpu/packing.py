"""Linear layers over packed weights.

`x @ weight.T + bias` for x [rows, columns] bfloat16 or float32 and weight [width, columns]; a gated layer, whose weight
stacks a gate on what it multiplies, answers gate(x @ gate.T) * (x @ up.T) with half the width. Weights stay as they are
(`Plain`), or are rounded to 8 bits for each output or to 4 bits for each group of columns (`Int8`, `Int4`); these round
the activations to 8 bits too, for each row, or each group of it, so that no row changes another's numbers. Sums are in
float32, or exact.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu.emit import LANES
from penstock_kernels.cpu.memory import lasting
from penstock_kernels.cpu.tiles import (
    AS_BF16,
    AS_FLOAT,
    BLOCKS,
    GELU_BF16,
    GELU_FLOAT,
    PANEL,
    SILU_BF16,
    SILU_FLOAT,
)
from penstock_kernels.cpu.workspace import MULTIPLY, MULTIPLY_INT4, MULTIPLY_INT8, ROUND, Workspace
from penstock_kernels.quant_formats import SYMMETRIC_ZERO, Int4Codes
from penstock_kernels.quant_matmul import ChannelWeight

FINISHES = {
    (None, torch.float32): AS_FLOAT,
    (None, torch.bfloat16): AS_BF16,
    ("silu", torch.float32): SILU_FLOAT,
    ("silu", torch.bfloat16): SILU_BF16,
    ("gelu_pytorch_tanh", torch.float32): GELU_FLOAT,
    ("gelu_pytorch_tanh", torch.bfloat16): GELU_BF16,
}
GATES = ("silu", "gelu_pytorch_tanh")
GROUP = 32  # columns that share a scale of 4-bit weights; 64 saves 5 to 15% of the time of a product and costs quality


class Shape(NamedTuple):
    """What the outputs of a layer look like."""

    width: int
    gate: str | None
    bias: Tensor  # float32 [panels * 64], in the order of the panels

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, gate: str | None) -> Self:
        rows = len(weight)
        given = torch.zeros(rows) if bias is None else bias.float()
        return cls(rows // 2 if gate else rows, gate, _in_panels(given, gate).flatten().contiguous())

    @property
    def panel_width(self) -> int:
        return PANEL // 2 if self.gate else PANEL


class Packed(Protocol):
    """Weights in panels."""

    shape: Shape

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Fill and return `out` [rows, width], bfloat16 or float32; rows of both may lie apart."""
        ...


class Plain:
    """Weights in the type of the activations."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, gate: str | None = None, space: Workspace | None = None
    ) -> None:
        self._space = space or Workspace()
        self.shape = Shape.of(weight, bias, gate)
        together = 4 // weight.itemsize  # columns in a step
        self._steps = weight.shape[1] // together
        self._size = weight.itemsize
        self._weights = lasting(_by_step(_in_panels(weight, gate), together))

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        shape, size = self.shape, self._size
        self._space.launch(
            MULTIPLY,
            size,
            len(x),
            x.data_ptr(),
            x.stride(0) * size,
            self._weights.data_ptr(),
            self._steps,
            shape.bias.data_ptr(),
            shape.width,
            shape.panel_width,
            FINISHES[shape.gate, out.dtype],
            out.data_ptr(),
            out.stride(0) * out.itemsize,
            out.itemsize,
        )
        return out


class Int8:
    """Weights in 8 bits, symmetric, one scale for each output: rounded here, or given as codes."""

    def __init__(
        self,
        weight: Tensor | ChannelWeight,
        bias: Tensor | None = None,
        *,
        gate: str | None = None,
        space: Workspace | None = None,
    ) -> None:
        codes, scales = round_to_int8(weight) if isinstance(weight, Tensor) else (weight.codes, weight.scales)
        self._space = space or Workspace()
        self.shape = Shape.of(codes, bias, gate)
        self._columns = codes.shape[1]
        arranged = _in_panels(codes, gate)
        self._weights = lasting(_by_step(arranged, 4))
        self._scales = _in_panels(scales, gate).flatten().contiguous()
        self._corrections = (128 * arranged.sum(-1, dtype=torch.int32)).flatten().contiguous()

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        shape, columns, size = self.shape, self._columns, x.itemsize
        codes = self._space.take("codes", len(x), columns, torch.uint8)
        scales = self._space.take("scales", len(x), 1, torch.float32)
        self._space.launch(
            ROUND,
            size,
            len(x),
            columns,
            0,
            x.data_ptr(),
            x.stride(0) * size,
            codes.data_ptr(),
            scales.data_ptr(),
            0,
        )
        self._space.launch(
            MULTIPLY_INT8,
            len(x),
            codes.data_ptr(),
            columns,
            scales.data_ptr(),
            self._weights.data_ptr(),
            columns // 4,
            self._scales.data_ptr(),
            self._corrections.data_ptr(),
            shape.bias.data_ptr(),
            shape.width,
            shape.panel_width,
            FINISHES[shape.gate, out.dtype],
            out.data_ptr(),
            out.stride(0) * out.itemsize,
            out.itemsize,
        )
        return out


class Int4:
    """Weights in 4 bits, symmetric, one scale for each output and group of columns: rounded here, or given as codes.

    Groups of codes are multiples of 32 columns, neighbours all; their scales are kept in float16.
    """

    def __init__(
        self,
        weight: Tensor | Int4Codes,
        bias: Tensor | None = None,
        *,
        gate: str | None = None,
        space: Workspace | None = None,
    ) -> None:
        codes, scales = round_to_int4(weight, GROUP) if isinstance(weight, Tensor) else _in_groups(weight)
        self._space = space or Workspace()
        self.shape = Shape.of(codes, bias, gate)
        self._columns = codes.shape[1]
        self._weights = lasting(_by_step(_nibbles(_in_panels(codes, gate, fill=8)), 4))
        by_group = _in_panels(scales, gate).transpose(1, 2)  # [panels, groups, 64]
        self._scales = lasting(by_group.to(torch.float16).contiguous())

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        shape, columns, group, size = self.shape, self._columns, GROUP, x.itemsize
        groups = columns // group
        codes = self._space.take("codes", len(x), columns, torch.int8)
        scales = self._space.take("scales", len(x), groups, torch.float32)
        corrections = self._space.take("corrections", len(x), groups, torch.int32)
        self._space.launch(
            ROUND,
            size,
            len(x),
            columns,
            group,
            x.data_ptr(),
            x.stride(0) * size,
            codes.data_ptr(),
            scales.data_ptr(),
            corrections.data_ptr(),
        )
        self._space.launch(
            MULTIPLY_INT4,
            len(x),
            codes.data_ptr(),
            columns,
            scales.data_ptr(),
            corrections.data_ptr(),
            self._weights.data_ptr(),
            group // 8,
            groups,
            self._scales.data_ptr(),
            shape.bias.data_ptr(),
            shape.width,
            shape.panel_width,
            FINISHES[shape.gate, out.dtype],
            out.data_ptr(),
            out.stride(0) * out.itemsize,
            out.itemsize,
        )
        return out


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [width, columns], float32 scales [width]): to the nearest of -127 to 127 steps, ties to even."""
    weight = weight.float()
    scales = weight.abs().amax(-1) / 127
    return (weight / scales.clamp(min=1e-30).unsqueeze(-1)).round_().to(torch.int8), scales


def round_to_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(uint8 [width, columns] from 1 to 15, 8 above their value, float32 scales [width, columns / group])."""
    grouped = weight.float().unflatten(-1, (-1, group))
    scales = (grouped.abs().amax(-1) / 7).to(torch.float16).float()  # as they will be stored
    codes = (grouped / scales.clamp(min=1e-30).unsqueeze(-1)).round_().clamp_(-7, 7) + 8
    return codes.flatten(-2).to(torch.uint8), scales


def _in_groups(weight: Int4Codes) -> tuple[Tensor, Tensor]:
    """Codes and scales of `weight`, each scale as often as its group has runs of `GROUP` columns."""
    if lacking := lacks_of_int4(weight):
        raise ShapeError(f"codes cannot be packed: {lacking}")
    return weight.codes, weight.scales.float().repeat_interleave(weight.group_size // GROUP, dim=1)


def lacks_of_int4(weight: Int4Codes) -> str:
    """Why these codes cannot be packed, in words; empty if they can."""
    if bool((weight.zeros != SYMMETRIC_ZERO).any()):
        return "they have zero points"
    if weight.g_idx is not None and not torch.equal(
        weight.column_group, torch.arange(weight.codes.shape[1]) // weight.group_size
    ):
        return "their groups are not of neighbouring columns"
    if weight.group_size % GROUP:
        return f"their groups have {weight.group_size} columns, no multiple of {GROUP}"
    largest = float(weight.scales.abs().max())
    return f"a scale is {largest}, beyond float16" if largest > torch.finfo(torch.float16).max else ""


def _in_panels(rows: Tensor, gate: str | None, fill: int = 0) -> Tensor:
    """`rows` [width, ...] as [panels, 64, ...]; of a gated layer, 32 of the gate and their 32 partners in each."""
    parts = rows.chunk(2) if gate else (rows,)
    each = PANEL // len(parts)
    lacking = -len(parts[0]) % each
    padding = rows.new_full((lacking, *rows.shape[1:]), fill)
    whole = (torch.cat((part, padding)).unflatten(0, (-1, each)) for part in parts)
    return torch.cat(tuple(whole), dim=1)


def _by_step(panels: Tensor, together: int) -> Tensor:
    """[panels, 64, columns] in the order of reading: [panels, steps, blocks, 16, together]."""
    return panels.unflatten(1, (BLOCKS, LANES)).unflatten(-1, (-1, together)).permute(0, 3, 1, 2, 4).contiguous()


def _nibbles(codes: Tensor) -> Tensor:
    """[..., columns] as bytes [..., columns / 2]: of every eight columns, the first four low, the others high."""
    low, high = codes.unflatten(-1, (-1, 2, 4)).unbind(-2)
    return (low | high << 4).flatten(-2)
