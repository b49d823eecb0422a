"""Weights of 4 bits, and of 3, as the world publishes them, read into one logical form.

    published       packed codes                zeros                  scales   order of the eight nibbles
    compressed-     int32 [N, K/8] along K      int32 [N/8, G] or none [N, G]   0 1 2 3 4 5 6 7, low first
      tensors
    GPTQ            int32 [K/8, N] along K      int32 [G, N/8]         [G, N]   0 1 2 3 4 5 6 7, low first
    AWQ (GEMM)      int32 [K, N/8] along N      int32 [G, N/8]         [G, N]   0 2 4 6 1 3 5 7, low first

N is the output width of the linear layer, K its input width, G the number of groups along K that share a scale and a
zero. In each of them a weight is `(code - zero) * scale`, with code and zero in 0..15; symmetric weights have zero 8.
compressed-tensors packs 3 bits alike, densely and across words; codes and zeros lie in 0..7 then, around 4.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from penstock_kernels.checks import ShapeError, check_dtype, check_shape

BITS = 4
WORD_BITS = 32
PER_WORD = WORD_BITS // BITS
SYMMETRIC_ZERO = 8
IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Int4Codes:
    """Unpacked 4-bit weights `(codes[n, k] - zeros[n, g]) * scales[n, g]`, where g is the group of column k.

    `codes` uint8 [N, K] and `zeros` uint8 [N, G] lie in 0..15, `scales` [N, G] is floating. `g_idx` [K] names each
    column's group; None says that a group is K / G neighbouring columns. With `bits` 3 both lie in 0..7.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor | None = None
    bits: int = BITS

    def __post_init__(self) -> None:
        check_dtype("codes", self.codes, torch.uint8)
        check_dtype("zeros", self.zeros, torch.uint8)
        check_dtype("scales", self.scales, torch.float16, torch.bfloat16, torch.float32)
        check_shape("codes", self.codes, (None, None))
        check_shape("scales", self.scales, (self.codes.shape[0], None))
        check_shape("zeros", self.zeros, (self.codes.shape[0], self.scales.shape[1]))
        if self.codes.shape[1] % self.scales.shape[1]:
            raise ShapeError(
                f"codes have {self.codes.shape[1]} columns, which {self.scales.shape[1]} groups cannot share"
            )
        if self.g_idx is not None:
            check_shape("g_idx", self.g_idx, (self.codes.shape[1],))

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    @cached_property
    def column_group(self) -> Tensor:
        """Each column's group, int64 [K]."""
        if self.g_idx is not None:
            return self.g_idx.long()
        return torch.arange(self.codes.shape[1], device=self.codes.device) // self.group_size

    def dequantize(self) -> Tensor:
        """The weights in float32 [N, K]."""
        group = self.column_group
        return (self.codes.float() - self.zeros.float()[:, group]) * self.scales.float()[:, group]


def pack_nibbles(values: Tensor, dim: int, order: tuple[int, ...] = IN_ORDER) -> Tensor:
    """Eight neighbours of `values` (0..15) along `dim` to one int32: nibble i holds neighbour `order[i]`, low first.

    A length that is no multiple of eight is filled up with zeros.
    """
    moved = values.movedim(dim, -1).to(torch.int32)
    filled = torch.nn.functional.pad(moved, (0, -moved.shape[-1] % PER_WORD))
    eights = filled.reshape(*filled.shape[:-1], -1, PER_WORD)
    words = torch.zeros_like(eights[..., 0])
    for nibble, neighbour in enumerate(order):
        words |= eights[..., neighbour] << (BITS * nibble)
    return words.movedim(-1, dim).contiguous()


def unpack_nibbles(words: Tensor, dim: int, length: int, order: tuple[int, ...] = IN_ORDER) -> Tensor:
    """The first `length` values along `dim`, uint8, of what `pack_nibbles` packed in this `order`."""
    check_dtype("words", words, torch.int32)
    moved = words.movedim(dim, -1)
    values = torch.empty((*moved.shape, PER_WORD), dtype=torch.uint8, device=words.device)
    for nibble, neighbour in enumerate(order):
        values[..., neighbour] = (moved >> (BITS * nibble)) & 15
    return values.flatten(-2)[..., :length].movedim(-1, dim).contiguous()


def unpack_dense(words: Tensor, dim: int, length: int, bits: int) -> Tensor:
    """The first `length` numbers of `bits` along `dim`, uint8, that lie one after the other, low bits first, also
    across words."""
    check_dtype("words", words, torch.int32)
    if bits == BITS:
        return unpack_nibbles(words, dim, length)
    moved = words.movedim(dim, -1)
    filled = torch.nn.functional.pad(moved, (0, -moved.shape[-1] % bits)).long() & 0xFFFFFFFF
    cycles = filled.view(*filled.shape[:-1], -1, bits)  # as many words hold 32 numbers
    values = torch.empty((*cycles.shape[:-1], WORD_BITS), dtype=torch.uint8, device=words.device)
    for at in range(WORD_BITS):
        word, shift = divmod(at * bits, WORD_BITS)
        found = cycles[..., word] >> shift
        if shift + bits > WORD_BITS:
            found = found | cycles[..., word + 1] << (WORD_BITS - shift)
        values[..., at] = found & ((1 << bits) - 1)
    return values.flatten(-2)[..., :length].movedim(-1, dim).contiguous()


def from_compressed_tensors(
    packed: Tensor,
    scales: Tensor,
    shape: tuple[int, int],
    zeros: Tensor | None = None,
    g_idx: Tensor | None = None,
    *,
    bits: int = BITS,
) -> Int4Codes:
    """Read `pack-quantized`: `weight_packed`, `weight_scale`, `weight_shape`, `weight_zero_point`, `weight_g_idx`.

    Source: github.com/vllm-project/compressed-tensors, `compressors/pack_quantized`.
    """
    rows, columns = shape
    check_shape("packed", packed, (rows, _words(columns, bits)))
    check_shape("scales", scales, (rows, None))
    if zeros is None:
        read_zeros = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.uint8, device=scales.device)
    else:
        check_shape("zeros", zeros, (_words(rows, bits), scales.shape[1]))
        read_zeros = unpack_dense(zeros, 0, rows, bits)
    return Int4Codes(unpack_dense(packed, 1, columns, bits), scales, read_zeros, _grouping(g_idx), bits)


def _words(numbers: int, bits: int) -> int:
    return -(-numbers * bits // WORD_BITS)


def from_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None = None, *, version: int = 1
) -> Int4Codes:
    """Read GPTQ: `checkpoint_format` "gptq" is version 1, which stores zero - 1 in four bits, "gptq_v2" stores zero.

    Source: github.com/AutoGPTQ/AutoGPTQ and its successor GPTQModel.
    """
    if version not in (1, 2):
        raise ShapeError(f"version is {version} and should be 1 or 2")
    groups, rows = scales.shape
    check_shape("qweight", qweight, (None, rows))
    check_shape("qzeros", qzeros, (groups, -(-rows // PER_WORD)))
    codes = unpack_nibbles(qweight, 0, qweight.shape[0] * PER_WORD)
    zeros = unpack_nibbles(qzeros, 1, rows)
    if version == 1:
        zeros = (zeros + 1) & 15
    return Int4Codes(codes.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous(), _grouping(g_idx))


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Int4Codes:
    """Read AWQ's GEMM version. Source: github.com/mit-han-lab/llm-awq and AutoAWQ."""
    groups, rows = scales.shape
    check_shape("qweight", qweight, (None, -(-rows // PER_WORD)))
    check_shape("qzeros", qzeros, (groups, -(-rows // PER_WORD)))
    codes = unpack_nibbles(qweight, 1, rows, AWQ_ORDER)
    zeros = unpack_nibbles(qzeros, 1, rows, AWQ_ORDER)
    return Int4Codes(codes.T.contiguous(), scales.T.contiguous(), zeros.T.contiguous())


def _grouping(g_idx: Tensor | None) -> Tensor | None:
    """None for an absent grouping, and for one of -1 alone, which compressed-tensors writes for "not in use"."""
    if g_idx is None or bool((g_idx < 0).all()):
        return None
    return g_idx
