"""Linear layers over packed weights.

`x @ weight.T + bias` for x [rows, columns] bfloat16 or float32 and weight [width, columns]; a gated layer, whose weight
stacks a gate on what it multiplies, answers gate(x @ gate.T) * (x @ up.T) with half the width. Weights stay as they are
(`Plain`), or have 8 bits with a scale for each output (`Int8`); `packing_few_bits` has those of fewer bits, and
`packing_e4m3` floats of 8. All but `Plain` round the activations to 8 bits too, for each row, or each run of it, so
that no row changes another's numbers. Sums are in float32, or exact.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu.kinds import LANES
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
from penstock_kernels.cpu.workspace import MULTIPLY, MULTIPLY_INT8, ROUND, Workspace
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


class Shape(NamedTuple):
    """What the outputs of a layer look like."""

    width: int
    gate: str | None
    bias: Tensor  # float32 [panels * 64], in the order of the panels

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, gate: str | None) -> Self:
        rows = len(weight)
        given = torch.zeros(rows) if bias is None else bias.float()
        return cls(rows // 2 if gate else rows, gate, in_panels(given, gate).flatten().contiguous())

    @property
    def panel_width(self) -> int:
        return PANEL // 2 if self.gate else PANEL


class Packed(Protocol):
    """Weights in panels."""

    shape: Shape

    @property
    def kind(self) -> str:
        """How they are held, in a word."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory of the weights: codes, scales and zeros, and what else a product reads of them."""
        ...

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Fill and return `out` [rows, width], bfloat16 or float32; rows of both may lie apart."""
        ...


class Plain:
    """Weights in the type of the activations."""

    kind = "Plain"

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, gate: str | None = None, space: Workspace | None = None
    ) -> None:
        self._space = space or Workspace()
        self.shape = Shape.of(weight, bias, gate)
        together = 4 // weight.itemsize  # columns in a step
        self._steps = weight.shape[1] // together
        self._size = weight.itemsize
        self._weights = lasting(by_step(in_panels(weight, gate), together))

    @property
    def held_bytes(self) -> int:
        return nbytes(self._weights)

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

    kind = "Int8"

    def __init__(
        self,
        weight: Tensor | ChannelWeight,
        bias: Tensor | None = None,
        *,
        gate: str | None = None,
        space: Workspace | None = None,
    ) -> None:
        codes, scales = round_to_int8(weight) if isinstance(weight, Tensor) else (weight.codes, weight.scales)
        self._columns = codes.shape[1]
        if self._columns % 4:
            raise ShapeError(f"int8 codes have {self._columns} columns, no multiple of 4")
        self._space = space or Workspace()
        self.shape = Shape.of(codes, bias, gate)
        arranged = in_panels(codes, gate)
        self._weights = lasting(by_step(arranged, 4))
        self._scales = in_panels(scales, gate).flatten().contiguous()
        self._corrections = (128 * arranged.sum(-1, dtype=torch.int32)).flatten().contiguous()

    @property
    def held_bytes(self) -> int:
        return nbytes(self._weights, self._scales, self._corrections)

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


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [width, columns], float32 scales [width]): to the nearest of -127 to 127 steps, ties to even."""
    weight = weight.float()
    scales = weight.abs().amax(-1) / 127
    return (weight / scales.clamp(min=1e-30).unsqueeze(-1)).round_().to(torch.int8), scales


def in_panels(rows: Tensor, gate: str | None) -> Tensor:
    """`rows` [width, ...] as [panels, 64, ...]; of a gated layer, 32 of the gate and their 32 partners in each."""
    parts = rows.chunk(2) if gate else (rows,)
    each = PANEL // len(parts)
    lacking = -len(parts[0]) % each
    padding = rows.new_zeros((lacking, *rows.shape[1:]))
    whole = (torch.cat((part, padding)).unflatten(0, (-1, each)) for part in parts)
    return torch.cat(tuple(whole), dim=1)


def by_step(panels: Tensor, together: int) -> Tensor:
    """[panels, 64, columns] in the order of reading: [panels, steps, blocks, 16, together]."""
    return panels.unflatten(1, (BLOCKS, LANES)).unflatten(-1, (-1, together)).permute(0, 3, 1, 2, 4).contiguous()


def nbytes(*held: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in held if tensor is not None)
