"""Linear layers over weights of 4 and 3 bits, with a scale, and where they have them a zero, for groups of columns.

Activations are rounded to 8 bits by runs of 32 columns (16 or 8 where groups are no multiple of 32). What is held is
what the codes are: 4 or 3 bits, and for each group and output a float16 scale and, unless all zeros are the middle
code, a byte of zero.
"""

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu.linear import INT3, INT4
from penstock_kernels.cpu.memory import lasting
from penstock_kernels.cpu.packing import FINISHES, Shape, by_step, in_panels, nbytes
from penstock_kernels.cpu.tiles import PANEL
from penstock_kernels.cpu.tiles_few_bits import WORDS_3, WORDS_4
from penstock_kernels.cpu.workspace import MULTIPLY_FEW_BITS, ROUND, TAKE, Workspace
from penstock_kernels.quant_formats import SYMMETRIC_ZERO, Int4Codes
from penstock_kernels.quant_int4 import act_order

GROUP = 32  # columns that share a scale where we round; 64 saves 5 to 15% of the time of a product and costs quality
RUNS = (32, 16, 8)  # columns of activations that share a scale: the most that divide a group
COLUMNS_3 = 4 * WORDS_3  # of a step of three bits


class FewBits:
    """Weights rounded here to 4 bits, or given as codes. Raises ShapeError for codes that cannot be packed."""

    def __init__(
        self,
        weight: Tensor | Int4Codes,
        bias: Tensor | None = None,
        *,
        gate: str | None = None,
        space: Workspace | None = None,
    ) -> None:
        given = round_to_int4(weight, GROUP) if isinstance(weight, Tensor) else weight
        if lacking := lacks_of_few_bits(given):
            raise ShapeError(f"codes cannot be packed: {lacking}")
        self._space = space or Workspace()
        self.shape = Shape.of(given.codes, bias, gate)
        order = act_order(given)
        codes = given.codes if order is None else given.codes[:, order]
        self._order = order
        self._columns, self._groups = codes.shape[1], given.scales.shape[1]
        self._run = next(size for size in RUNS if given.group_size % size == 0)
        self.bits = 3 if given.bits == 3 and self._run == COLUMNS_3 else 4
        arranged = in_panels(codes, gate)
        self._weights = lasting(_threes(arranged) if self.bits == 3 else by_step(_nibbles(arranged), 4))
        self._scales = lasting(in_panels(given.scales.to(torch.float16), gate).transpose(1, 2).contiguous())
        middle = 1 << (self.bits - 1)
        self._symmetric = bool((given.zeros == middle).all())
        zeros = in_panels(given.zeros, gate).transpose(1, 2).contiguous()
        self._zeros = torch.full((PANEL,), middle, dtype=torch.uint8) if self._symmetric else lasting(zeros)

    @property
    def kind(self) -> str:
        return f"Int{self.bits}" if self._symmetric else f"Int{self.bits} with zeros"

    @property
    def held_bytes(self) -> int:
        return nbytes(self._weights, self._scales, None if self._symmetric else self._zeros, self._order)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        columns, space, runs = self._columns, self._space, self._columns // self._run
        x = x if self._order is None else self._in_order(x, self._order)
        codes = space.take("codes", len(x), columns, torch.int8)
        scales = space.take("scales", len(x), runs, torch.float32)
        sums = space.take("sums", len(x), runs, torch.int32)
        space.launch(
            ROUND,
            x.itemsize,
            len(x),
            columns,
            self._run,
            x.data_ptr(),
            x.stride(0) * x.itemsize,
            codes.data_ptr(),
            scales.data_ptr(),
            sums.data_ptr(),
        )
        space.launch(
            MULTIPLY_FEW_BITS,
            INT3 if self.bits == 3 else INT4,
            len(x),
            codes.data_ptr(),
            columns,
            scales.data_ptr(),
            sums.data_ptr(),
            self._weights.data_ptr(),
            self._run // (4 * (WORDS_3 if self.bits == 3 else WORDS_4)),
            self._groups,
            runs // self._groups,
            self._scales.data_ptr(),
            self._zeros.data_ptr(),
            0 if self._symmetric else PANEL,
            self.shape.bias.data_ptr(),
            self.shape.width,
            self.shape.panel_width,
            FINISHES[self.shape.gate, out.dtype],
            out.data_ptr(),
            out.stride(0) * out.itemsize,
            out.itemsize,
        )
        return out

    def _in_order(self, x: Tensor, order: Tensor) -> Tensor:
        """The columns of `x` as those of the codes lie."""
        taken, size = self._space.take("ordered", len(x), self._columns, x.dtype), x.itemsize
        self._space.launch(
            TAKE,
            size,
            len(x),
            self._columns,
            x.data_ptr(),
            x.stride(0) * size,
            order.data_ptr(),
            taken.data_ptr(),
        )
        return taken


def round_to_int4(weight: Tensor, group: int) -> Int4Codes:
    """Symmetric codes from 1 to 15, 8 above their value, whose scales float16 holds: to the nearest, ties to even."""
    grouped = weight.float().unflatten(-1, (-1, group))
    scales = (grouped.abs().amax(-1) / 7).to(torch.float16).float()  # as they will be stored
    codes = (grouped / scales.clamp(min=1e-30).unsqueeze(-1)).round_().clamp_(-7, 7) + SYMMETRIC_ZERO
    zeros = torch.full(scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8)
    return Int4Codes(codes.flatten(-2).to(torch.uint8), scales, zeros)


def lacks_of_few_bits(weight: Int4Codes) -> str:
    """Why these codes cannot be packed, in words; empty if they can."""
    if weight.group_size % RUNS[-1]:
        return f"their groups have {weight.group_size} columns, no multiple of {RUNS[-1]}"
    try:
        act_order(weight)
    except ShapeError as error:
        return str(error)
    largest = float(weight.scales.abs().max())
    return "" if largest <= torch.finfo(torch.float16).max else f"a scale is {largest}, which float16 does not hold"


def _nibbles(codes: Tensor) -> Tensor:
    """[..., columns] as bytes [..., columns / 2]: of every eight columns, the first four low, the others high."""
    low, high = codes.unflatten(-1, (-1, WORDS_4, 4)).unbind(-2)
    return (low | high << 4).flatten(-2)


def _threes(panels: Tensor) -> Tensor:
    """[panels, 64, columns] in the order of reading, [panels, steps, 3, blocks, 16, 4]: of every 32 columns the lower
    two bits of the first sixteen, those of the others, and the highest bits of all."""
    words = panels.unflatten(-1, (-1, WORDS_3, 4))  # [panels, 64, steps, word, 4]
    half = WORDS_3 // 2
    lower = [_stacked(words[..., first : first + half, :] & 3, 2) for first in (0, half)]
    stored = torch.stack((*lower, _stacked(words >> 2, 1)), dim=-2)  # [panels, 64, steps, 3, 4]
    return stored.unflatten(1, (-1, 16)).permute(0, 3, 4, 1, 2, 5).contiguous()


def _stacked(words: Tensor, bits: int) -> Tensor:
    """[..., word, 4] as bytes [..., 4]: each word's numbers `bits` above those of the one before."""
    found = torch.zeros_like(words[..., 0, :])
    for at in range(words.shape[-2]):
        found |= words[..., at, :] << (bits * at)
    return found
