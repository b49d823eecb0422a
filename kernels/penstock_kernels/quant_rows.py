"""Quantization of activations to 8 bits, each token (row) by itself, so that no request moves another's rounding.

Formulas, in float32, with IEEE division, and rounding to the nearest, halves to even:

    scale = max(max|x|, 1e-10) / limit        over the row, or over its run of 128 columns
    int8  = clamp(round(x / scale), -127, 127)                limit 127
    e4m3  = to_e4m3(clamp(x / scale, -448, 448))              limit 448

`code * scale` is the value that was kept. The floor keeps a row of zeros from dividing by zero. Weights of a linear
layer [N, K] are quantized per output channel by the same functions.
"""

import torch
from torch import Tensor

from penstock_kernels.checks import check_shape

INT8_LIMIT = 127.0
E4M3_LIMIT = 448.0
SMALLEST = 1e-10
BLOCK = 128


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [rows, width] and scales float32 [rows] of `x` [rows, width]: symmetric, per row."""
    check_shape("x", x, (None, None))
    scales = _scales(x.float(), INT8_LIMIT)
    codes = torch.round(x.float() / scales[:, None])
    return codes.clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8), scales


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [rows, width] and scales float32 [rows] of `x` [rows, width]: per row."""
    check_shape("x", x, (None, None))
    scales = _scales(x.float(), E4M3_LIMIT)
    return _to_e4m3(x.float() / scales[:, None]), scales


def quantize_fp8_runs(x: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [rows, width] and scales float32 [rows, ceil(width / 128)]: per row and run of 128 columns.

    Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2.
    """
    check_shape("x", x, (None, None))
    width = x.shape[1]
    runs = torch.nn.functional.pad(x.float(), (0, -width % BLOCK)).view(len(x), -1, BLOCK)
    scales = _scales(runs, E4M3_LIMIT)
    return _to_e4m3(runs / scales[..., None]).flatten(1)[:, :width].contiguous(), scales


def quantize_fp8_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn [N, K] and scales float32 [ceil(N / 128), ceil(K / 128)]: per 128 x 128 block of a weight."""
    check_shape("weight", weight, (None, None))
    n, k = weight.shape
    filled = torch.nn.functional.pad(weight.float(), (0, -k % BLOCK, 0, -n % BLOCK))
    blocks = filled.view(-1, BLOCK, filled.shape[1] // BLOCK, BLOCK).transpose(1, 2)  # [N/128, K/128, 128, 128]
    scales = _scales(blocks.flatten(2), E4M3_LIMIT)
    codes = _to_e4m3(blocks / scales[..., None, None])
    return codes.transpose(1, 2).reshape(filled.shape)[:n, :k].contiguous(), scales


def _scales(values: Tensor, limit: float) -> Tensor:
    peaks = values.abs().amax(-1).clamp(min=SMALLEST)
    # By a tensor: a GPU multiplies by the reciprocal of a number, which differs in the last bit.
    return peaks / torch.full_like(peaks, limit)


def _to_e4m3(values: Tensor) -> Tensor:
    return values.clamp(-E4M3_LIMIT, E4M3_LIMIT).to(torch.float8_e4m3fn)
