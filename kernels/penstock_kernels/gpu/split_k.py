"""Matrix products whose depth is split over several programs, so that a few rows of activations keep every SM busy.

Each program adds up its part of the depth and writes it to `partials`; the one that arrives last at its tile adds all
parts, in their order, whoever came when, and goes on alone to the end. So a launch is one kernel, its sums do not
depend on timing, and `arrivals` is left as it was found: zero.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dtype, check_same_device

ARRIVALS = 4096  # tiles of one launch that may be split; a launch of more fills a GPU without splitting
INTERPRETED_PROCESSORS = 4
MOST_SPLITS = 32
# Rows of x: `sum_splits` sets them to 0, which Triton takes of no constant, and it makes one of an argument of 1.
COUNTED = ("m",)


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product [M, N] is cut: what one program computes, and how many share one tile's depth."""

    rows: int  # of x
    columns: int  # of the product: rows of the weight
    depth: int  # of K, per step
    num_warps: int
    num_stages: int
    splits: int = 1

    @property
    def label(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}, {self.num_warps} warps, {self.num_stages} stages"

    def grid(self, m: int, n: int) -> tuple[int, int, int]:
        """Row tiles first, so that programs that run together read the same weights."""
        return triton.cdiv(m, self.rows), triton.cdiv(n, self.columns), self.splits

    def split_for(self, m: int, n: int, k: int, processors: int) -> "Tile":
        """This tile with as many splits as give each SM two programs, each with four steps or more to pipeline."""
        row_tiles, column_tiles, _ = self.grid(m, n)
        wanted = 2 * processors // max(1, row_tiles * column_tiles)
        room = triton.cdiv(k, self.depth) // 4
        return replace(self, splits=max(1, min(wanted, room, MOST_SPLITS)))


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def split_arrivals(device: torch.device | str) -> Tensor:
    """The counters that the split launches of one stream share, int32 zeros; made before any graph is captured."""
    return torch.zeros(ARRIVALS, dtype=torch.int32, device=device)


def partial_sums(tile: Tile, m: int, n: int, arrivals: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for the parts of a launch, after a look whether `arrivals` can count its tiles."""
    check_dtype("arrivals", arrivals, torch.int32)
    if tile.splits == 1:
        return torch.empty(1, dtype=dtype, device=arrivals.device)
    row_tiles, column_tiles, splits = tile.grid(m, n)
    if row_tiles * column_tiles > arrivals.numel():
        raise ShapeError(
            f"arrivals counts {arrivals.numel()} tiles and the split launch has {row_tiles * column_tiles}"
        )
    size = row_tiles * column_tiles * splits * tile.rows * tile.columns
    return torch.empty(size, dtype=dtype, device=arrivals.device)


def check_operands(x: Tensor, arrivals: Tensor, bias: Tensor | None, n: int, **weights: Tensor) -> None:
    """What every launcher here asks of its tensors: one device, rows of x dense, weights contiguous, bias [n]."""
    check_same_device(x=x, arrivals=arrivals, bias=bias, **weights)
    if x.stride(1) != 1 and x.shape[1] != 1:
        raise ShapeError(f"x has strides {x.stride()} and should be dense along its rows")
    for name, tensor in weights.items():
        if not tensor.is_contiguous():
            raise ShapeError(f"{name} should be contiguous")
    if bias is not None and (bias.shape != (n,) or not bias.is_contiguous()):
        raise ShapeError(f"bias is {list(bias.shape)} and should be [{n}], contiguous")


@triton.jit
def share_of_steps(steps, SPLITS: tl.constexpr):
    """(first step, end) of this program's part of the depth."""
    share = tl.cdiv(steps, SPLITS)
    first = tl.program_id(2) * share
    return first, tl.minimum(first + share, steps)


@triton.jit
def sum_splits(acc, partials, arrivals, m, SPLITS: tl.constexpr):
    """(`acc` [columns, rows] over the whole depth, `m`) in the program that came last; `m` is 0 in the others."""
    if SPLITS > 1:
        COLUMNS: tl.constexpr = acc.shape[0]
        ROWS: tl.constexpr = acc.shape[1]
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        row = tl.arange(0, ROWS)[None, :]
        inside = tl.program_id(0) * ROWS + row < m
        place = row * COLUMNS + tl.arange(0, COLUMNS)[:, None]
        parts = partials + tile.to(tl.int64) * (SPLITS * COLUMNS * ROWS)
        tl.store(parts + tl.program_id(2) * (COLUMNS * ROWS) + place, acc, mask=inside)
        tl.debug_barrier()  # every thread's part is written before one thread says so
        before = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
        if before == SPLITS - 1:
            acc = tl.zeros_like(acc)
            for split in tl.static_range(SPLITS):
                part = parts + split * (COLUMNS * ROWS)
                acc += tl.load(part + place, mask=inside, other=0, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
        else:
            m = 0
    return acc, m


@triton.jit
def store_product(acc, out, bias, column, row, m, n):
    """Write `acc` [columns, rows] plus `bias` to `out` [m, n], transposed."""
    acc = acc.to(tl.float32)
    if bias is not None:
        acc += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[:, None]
    inside = (column[:, None] < n) & (row[None, :] < m)
    cell = out + row[None, :].to(tl.int64) * n + column[:, None]
    tl.store(cell, acc.to(out.dtype.element_ty), mask=inside)
