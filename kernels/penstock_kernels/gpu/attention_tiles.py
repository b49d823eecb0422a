"""How attention is cut into tiles: what was chosen for which GPU, head size and dtype, and why.

A row of a tile is one query of one head; all query heads of a K/V head lie in one tile ("Q-block"), so that a tile of
K and V is read once for the whole group. `block_m` counts rows, `block_n` positions of the context.

No figure below is measured yet: they follow from what a multiprocessor of Hopper holds (227 KB of shared memory, 65,536
registers) and from what the compiler reports for sm_90, stated with each. `tuning` replaces those that were.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from penstock_kernels.gpu.attention_variants import Variant

INTERPRETED_CAPABILITY = 90  # what CPU tensors, which only the interpreter takes, are treated as


@dataclass(frozen=True, slots=True)
class Tiles:
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def label(self) -> str:
        return f"{self.block_m}x{self.block_n}, {self.num_warps} warps, {self.num_stages} stages"

    def holding(self, group: int) -> "Tiles":
        """With rows enough for one query of every head of a group."""
        return replace(self, block_m=max(self.block_m, triton.next_power_of_2(group)))


class _Kind(NamedTuple):
    dim_pad: int
    bits: int  # of a number of q


# 16 bits: two groups of 4 warps, 64 rows each, are the shape of wgmma. At head_dim 128, 128 positions take 160 KB of
# shared memory at two stages and 254 of 255 registers: the widest that spills nothing, and only if the layer is plain.
# 32 bits run outside of the tensor cores; 32 rows would spill there.
_EXTEND_SM90 = {
    _Kind(64, 16): Tiles(128, 64, 8, 3),
    _Kind(128, 16): Tiles(128, 64, 8, 3),
    _Kind(256, 16): Tiles(128, 32, 8, 2),
    _Kind(64, 32): Tiles(32, 32, 4, 2),
    _Kind(128, 32): Tiles(16, 32, 8, 2),
    _Kind(256, 32): Tiles(16, 16, 8, 2),
}
_EXTEND_PLAIN_SM90 = {**_EXTEND_SM90, _Kind(128, 16): Tiles(128, 128, 8, 2)}

# Decoding waits for memory: 16 rows are the least that a tensor core takes, and bytes in flight are what counts. At
# head_dim 128 three stages of 64 positions are 70 KB, two of them always under way, and three such programs share a
# multiprocessor: 192 KB, where 4.3 TB/s over 132 multiprocessors and a microsecond's latency ask for 33 KB.
_DECODE_SM90 = {
    _Kind(64, 16): Tiles(16, 128, 4, 3),
    _Kind(128, 16): Tiles(16, 64, 4, 3),
    _Kind(256, 16): Tiles(16, 32, 4, 3),
    _Kind(64, 32): Tiles(16, 32, 4, 2),
    _Kind(128, 32): Tiles(16, 32, 8, 2),
    _Kind(256, 32): Tiles(16, 16, 8, 2),
}


def extend_tiles(layer: Variant, capability: int) -> Tiles:
    return _chosen(_EXTEND_PLAIN_SM90 if layer.plain else _EXTEND_SM90, layer, capability)


def decode_tiles(layer: Variant, capability: int) -> Tiles:
    return _chosen(_DECODE_SM90, layer, capability)


def _chosen(table: dict[_Kind, Tiles], layer: Variant, capability: int) -> Tiles:
    tiles = table[_Kind(max(64, layer.dim_pad), 8 * layer.dtype.itemsize)].holding(layer.group)
    # Other GPUs have as little as 99 KB of shared memory for a program, which two stages of small tiles keep below.
    return tiles if capability == 90 else replace(tiles, block_n=min(tiles.block_n, 32), num_stages=2)


@lru_cache
def device_capability(device: torch.device) -> int:
    """90 for compute capability 9.0."""
    if device.type != "cuda":
        return INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@lru_cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
