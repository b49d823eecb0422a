"""Linear layers over quantized weights: `x` [M, K] times a weight [N, K], plus `bias` [N], to [M, N] of x's dtype.

    scheme          weight                                     activations
    W4A16           codes 0..15, scale and zero per group      as they are
    W8A8            int8, scale per output channel             int8, scale per token, found when it runs
    FP8             e4m3, scale per output channel             e4m3, scale per token, found when it runs
    FP8 block       e4m3, scale per 128 x 128 block            e4m3, scale per token and 128 columns

    W4A16      out[m, n] = sum_k x[m, k] * (code[n, k] - zero[n, g(k)]) * scale[n, g(k)] + bias[n]
    8 bits     out[m, n] = (sum_k xcode[m, k] * code[n, k]) * xscale[m] * scale[n] + bias[n]
    FP8 block  out[m, n] = sum_b (sum_{k in b} xcode[m, k] * code[n, k]) * xscale[m, b] * scale[n / 128, b] + bias[n]

The torch forms here run on every device and are what the kernels are tested against: products and sums in float32,
those of int8 exactly, one rounding to x's dtype at the end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock_kernels.checks import check_dtype, check_shape
from penstock_kernels.quant_int4 import Int4Weight, unpack_int4
from penstock_kernels.quant_rows import BLOCK, quantize_fp8, quantize_fp8_runs, quantize_int8


@dataclass(frozen=True)
class ChannelWeight:
    """`codes` int8 or float8_e4m3fn [N, K], `scales` float32 [N]."""

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        check_dtype("codes", self.codes, torch.int8, torch.float8_e4m3fn)
        check_dtype("scales", self.scales, torch.float32)
        check_shape("codes", self.codes, (None, None))
        check_shape("scales", self.scales, (self.codes.shape[0],))


@dataclass(frozen=True)
class BlockWeight:
    """`codes` float8_e4m3fn [N, K], `scales` float32 [ceil(N / 128), ceil(K / 128)]: `weight_scale_inv`."""

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        check_dtype("codes", self.codes, torch.float8_e4m3fn)
        check_dtype("scales", self.scales, torch.float32)
        check_shape("codes", self.codes, (None, None))
        n, k = self.codes.shape
        check_shape("scales", self.scales, (-(-n // BLOCK), -(-k // BLOCK)))


def dequantize_int4(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """The weights [n, k] in `dtype`, columns in the layout's order; each is rounded once, from float32."""
    return unpack_int4(weight).dequantize().to(dtype)


def w4a16_matmul(x: Tensor, weight: Int4Weight, bias: Tensor | None = None) -> Tensor:
    """`x` [M, K] times 4-bit weights."""
    check_shape("x", x, (None, weight.k))
    product = F.linear(weight.activations(x).float(), dequantize_int4(weight, torch.float32))
    return _finish(product, bias, x.dtype)


def w8a8_matmul(x: Tensor, weight: ChannelWeight, bias: Tensor | None = None) -> Tensor:
    """`x` [M, K] times int8 weights, in int8."""
    check_dtype("weight.codes", weight.codes, torch.int8)
    return channel_matmul(*quantize_int8(x), weight, bias, x.dtype)


def fp8_matmul(x: Tensor, weight: ChannelWeight, bias: Tensor | None = None) -> Tensor:
    """`x` [M, K] times e4m3 weights, in e4m3."""
    check_dtype("weight.codes", weight.codes, torch.float8_e4m3fn)
    return channel_matmul(*quantize_fp8(x), weight, bias, x.dtype)


def fp8_block_matmul(x: Tensor, weight: BlockWeight, bias: Tensor | None = None) -> Tensor:
    """`x` [M, K] times e4m3 weights in blocks of 128 x 128, in e4m3."""
    return block_matmul(*quantize_fp8_runs(x), weight, bias, x.dtype)


def channel_matmul(
    codes: Tensor, scales: Tensor, weight: ChannelWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Activations already quantized: `codes` [M, K] of the weight's type, `scales` float32 [M]; to [M, N] `dtype`."""
    check_dtype("codes", codes, weight.codes.dtype)
    check_shape("codes", codes, (None, weight.codes.shape[1]))
    check_shape("scales", scales, (codes.shape[0],))
    exact = F.linear(codes.double(), weight.codes.double()).float()  # sums of int8 products fit in a float64
    return _finish(exact * weight.scales * scales[:, None], bias, dtype)


def block_matmul(codes: Tensor, scales: Tensor, weight: BlockWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Activations already quantized: `codes` e4m3 [M, K], `scales` float32 [M, ceil(K / 128)]; to [M, N] `dtype`."""
    check_dtype("codes", codes, torch.float8_e4m3fn)
    check_shape("codes", codes, (None, weight.codes.shape[1]))
    check_shape("scales", scales, (codes.shape[0], weight.scales.shape[1]))
    n, k = weight.codes.shape
    x = codes.float() * scales.repeat_interleave(BLOCK, 1)[:, :k]
    w = weight.codes.float() * weight.scales.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return _finish(F.linear(x, w), bias, dtype)


def _finish(product: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (product if bias is None else product + bias.float()).to(dtype)
