"""Linear layers over weights in e4m3, with a scale for each output or for blocks of 128 x 128.

Activations are rounded to e4m3 too, each row, or each 128 columns of it, by a scale found as it runs: what
`penstock_kernels.quant_matmul` defines, and GPUs do. Products of such numbers are exact in bfloat16's multiplication;
sums are in float32.
"""

import numba
import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError
from penstock_kernels.cpu.kinds import LANES
from penstock_kernels.cpu.memory import lasting
from penstock_kernels.cpu.packing import FINISHES, Shape, by_step, in_panels, nbytes
from penstock_kernels.cpu.tiles import BLOCKS, PANEL
from penstock_kernels.cpu.tiles_e4m3 import COLUMNS_E4M3, MOST_ROWS_E4M3
from penstock_kernels.cpu.workspace import MULTIPLY_E4M3, ROUND_TO_E4M3, Workspace
from penstock_kernels.quant_matmul import BlockWeight, ChannelWeight
from penstock_kernels.quant_rows import BLOCK, quantize_fp8

NAN = 0x7F  # of either sign


class Float8:
    """Weights rounded here, with a scale for each output, or given as codes. Raises ShapeError for such as are NaN."""

    kind = "Float8"

    def __init__(
        self,
        weight: Tensor | ChannelWeight | BlockWeight,
        bias: Tensor | None = None,
        *,
        gate: str | None = None,
        space: Workspace | None = None,
    ) -> None:
        given = ChannelWeight(*quantize_fp8(weight)) if isinstance(weight, Tensor) else weight
        if lacking := lacks_of_e4m3(given, gate):
            raise ShapeError(f"codes cannot be packed: {lacking}")
        self._space = space or Workspace()
        self.shape = Shape.of(given.codes, bias, gate)
        blocks, self._columns = isinstance(given, BlockWeight), given.codes.shape[1]
        filled = self._columns + -self._columns % (BLOCK if blocks else COLUMNS_E4M3)
        self._run = BLOCK if blocks else filled
        self._groups = filled // self._run
        codes = torch.nn.functional.pad(given.codes.view(torch.uint8), (0, filled - self._columns))
        self._weights = lasting(by_step(in_panels(codes, gate), COLUMNS_E4M3))
        panels = len(self._weights)
        outputs = torch.ones(len(codes)) if blocks else given.scales
        self._scales = in_panels(outputs, gate).flatten().contiguous()
        self._block_scales = _by_block(given, gate) if blocks else torch.ones(panels, 1, BLOCKS)

    @property
    def held_bytes(self) -> int:
        return nbytes(self._weights, self._scales, self._block_scales)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        space, shape, groups, filled = self._space, self.shape, self._groups, self._groups * self._run
        codes = space.take("e4m3", len(x), filled, torch.bfloat16)
        scales = space.take("scales", len(x), groups, torch.float32)
        space.launch(
            ROUND_TO_E4M3,
            x.itemsize,
            len(x),
            self._columns,
            self._run,
            x.data_ptr(),
            x.stride(0) * x.itemsize,
            codes.data_ptr(),
            scales.data_ptr(),
        )
        threads = numba.get_num_threads()
        space.launch(
            MULTIPLY_E4M3,
            threads,
            len(x),
            codes.data_ptr(),
            2 * filled,
            scales.data_ptr(),
            self._weights.data_ptr(),
            self._run // COLUMNS_E4M3,
            groups,
            self._scales.data_ptr(),
            self._block_scales.data_ptr(),
            shape.bias.data_ptr(),
            shape.width,
            shape.panel_width,
            FINISHES[shape.gate, out.dtype],
            out.data_ptr(),
            out.stride(0) * out.itemsize,
            out.itemsize,
            self._room(threads, filled) if len(x) > MOST_ROWS_E4M3 else 0,
        )
        return out

    def _room(self, threads: int, filled: int) -> int:
        """Where each thread may decode a panel."""
        return self._space.take("decoded", threads, PANEL * filled, torch.bfloat16).data_ptr()


def lacks_of_e4m3(weight: ChannelWeight | BlockWeight, gate: str | None = None) -> str:
    """Why these codes cannot be packed, in words; empty if they can."""
    if isinstance(weight, BlockWeight) and gate is not None and len(weight.codes) // 2 % LANES:
        return f"{len(weight.codes) // 2} outputs of a gate, no multiple of {LANES}, share scales with others"
    broken = int(((weight.codes.view(torch.uint8) & NAN) == NAN).sum())
    return f"{broken} of them are NaN" if broken else ""


def _by_block(weight: ChannelWeight | BlockWeight, gate: str | None) -> Tensor:
    """float32 [panels, groups, 4]: the scale of each block of sixteen outputs, which lie in one block of 128."""
    by_output = weight.scales.repeat_interleave(BLOCK, dim=0)[: len(weight.codes)]
    return in_panels(by_output, gate)[:, ::LANES].transpose(1, 2).contiguous()
