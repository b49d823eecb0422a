"""4-bit weights in the layout that the W4A16 kernels read, repacked once when a model is loaded.

A slab is `min(group size, 128)` neighbouring columns of the weight. All rows of one slab lie together, so that the tile
of a program is one run of memory, whatever its height:

    words   int32 [slabs, rows, slab / 8]   a row's nibbles of one slab
    scales  int32 [slabs, rows]             float32 bits of the scale, whose low byte holds the zero point instead

With W = slab / 8 words to a row, bits 4i and 16 + 4i of word j hold the slab's columns 2W*i + 2j and 2W*i + 2j + 1. Two
columns side by side in the two halves of a word are what a tensor core takes in one register: `word >> 4i & 0x000F000F`
yields both, and the four shifts of a word yield four runs of 2W columns, without moving anything between lanes.

Scales of 16 bits keep all of theirs in the upper 24 bits of a float32; one of 32 bits is rounded to 16 significant
bits. Rows and columns are filled up to whole tiles of 128 with scale 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError
from penstock_kernels.quant_formats import BITS, PER_WORD, Int4Codes

TILE = 128  # rows and columns are filled up to multiples of it
_HALF = 16  # bits
_PAIRS = 4  # nibbles in half a word


@dataclass(frozen=True)
class Int4Weight:
    """A linear layer's weight [n, k] in the kernels' layout; see the module. `order` is the act-order permutation.

    Where `order` (int64 [k]) is given, column j of the layout is column `order[j]` of the published weight, so
    activations are taken in that order too.
    """

    words: Tensor
    scales: Tensor
    n: int
    k: int
    order: Tensor | None = None

    @property
    def slab(self) -> int:
        """Columns to a slab."""
        return self.words.shape[2] * PER_WORD

    def activations(self, x: Tensor) -> Tensor:
        """`x` [M, k] with its columns in the layout's order."""
        return x if self.order is None else x.index_select(1, self.order)


def pack_int4(weight: Int4Codes) -> Int4Weight:
    """Repack for the kernels. Group sizes: 32, 64, or any multiple of 128."""
    size, (n, k) = weight.group_size, weight.codes.shape
    if size not in (32, 64) and size % TILE:
        raise ShapeError(f"the group size is {size} and should be 32, 64 or a multiple of {TILE}")
    order = act_order(weight)
    codes = weight.codes if order is None else weight.codes[:, order]
    slab = min(size, TILE)
    codes = torch.nn.functional.pad(codes, (0, -k % TILE, 0, -n % TILE))
    per_slab = _scale_words(weight).repeat_interleave(size // slab, dim=1)
    per_slab = torch.nn.functional.pad(per_slab, (0, codes.shape[1] // slab - per_slab.shape[1], 0, -n % TILE))
    return Int4Weight(_slab_words(codes, slab), per_slab.T.contiguous(), n, k, order)


def unpack_int4(weight: Int4Weight) -> Int4Codes:
    """The logical form of a packed weight, one group to a slab, its columns in the layout's order."""
    slabs = -(-weight.k // weight.slab)
    words = weight.words[:slabs, : weight.n]
    runs = [words >> shift & 15 for i in range(_PAIRS) for shift in (BITS * i, BITS * i + _HALF)]
    nibbles = torch.stack(runs, dim=-1).view(*words.shape, _PAIRS, 2)  # [slab, row, word, i, half]
    codes = nibbles.permute(1, 0, 3, 2, 4).reshape(weight.n, -1)[:, : weight.k]
    scale_words = weight.scales[:slabs, : weight.n].T.contiguous()
    scales = (scale_words & ~0xFF).view(torch.float32)
    return Int4Codes(codes.to(torch.uint8).contiguous(), scales, (scale_words & 0xFF).to(torch.uint8))


def act_order(weight: Int4Codes) -> Tensor | None:
    """The permutation that brings each group's columns together, in their order; None where they are.

    Raises ShapeError where groups are not of one size.
    """
    if weight.g_idx is None:
        return None
    group = weight.column_group
    sizes = torch.bincount(group, minlength=weight.scales.shape[1])
    if bool((sizes != weight.group_size).any()):
        raise ShapeError(
            f"g_idx should name each group {weight.group_size} times, and names them {sizes.tolist()} times"
        )
    order = torch.argsort(group, stable=True)
    in_place = torch.equal(order, torch.arange(len(order), device=order.device))
    return None if in_place else order


def _slab_words(codes: Tensor, slab: int) -> Tensor:
    """int32 [slabs, rows, slab / 8] of codes [rows, slabs * slab]."""
    runs = codes.to(torch.int32).view(len(codes), -1, _PAIRS, slab // PER_WORD, 2)  # [row, slab, i, word, half]
    words = torch.zeros_like(runs[:, :, 0, :, 0])
    for i in range(_PAIRS):
        for half in range(2):
            words |= runs[:, :, i, :, half] << (BITS * i + _HALF * half)
    return words.movedim(0, 1).contiguous()


def _scale_words(weight: Int4Codes) -> Tensor:
    """int32 [N, G]: the scale's float32 bits, rounded half even to a low byte of zeros, which takes the zero point."""
    bits = weight.scales.float().contiguous().view(torch.int32)
    rounded = (bits + 0x7F + (bits >> 8 & 1)) & ~0xFF
    return rounded | weight.zeros.int()
