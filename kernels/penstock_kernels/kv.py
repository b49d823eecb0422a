"""How K and V are kept in fewer bits: one scale for each token and head.

    scale     = max |x| / LARGEST[dtype]          in float32, then rounded to the scales' dtype
    quantized = round(clamp(x / scale, -LARGEST, LARGEST))
    restored  = quantized * scale

x is one head of one token, [head_dim]. The rounded scale is the one divided by, so both ways use the same number.
int8 rounds half to even; float8_e4m3fn rounds to the nearest float, ties to even. A head of zeros, or one so small that
its scale rounds to zero, is stored as zeros; one that is not finite gets a scale of NaN, so that it stays not finite.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

LARGEST: Mapping[torch.dtype, float] = MappingProxyType({torch.int8: 127.0, torch.float8_e4m3fn: 448.0})
SCALE_DTYPES = (torch.float16, torch.float32)


def quantize_heads(x: Tensor, dtype: torch.dtype, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` [..., head_dim] in `dtype`, and its scales [...] in `scale_dtype`."""
    largest = LARGEST[dtype]
    exact = x.float()
    # A tensor, since a GPU multiplies by the reciprocal of a number, which differs in the last bit.
    divisor = torch.tensor(largest, device=x.device)
    scales = (exact.abs().amax(dim=-1) / divisor).to(scale_dtype)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    usable = scales.float() > 0
    divided = exact / torch.where(usable, scales.float(), 1.0).unsqueeze(-1)
    kept = torch.where(usable.unsqueeze(-1), divided, 0.0).clamp_(-largest, largest)
    return (kept.round_() if dtype == torch.int8 else kept).to(dtype), scales


def dequantize_heads(quantized: Tensor, scales: Tensor) -> Tensor:
    """The heads that `quantize_heads` kept, [..., head_dim] in float32."""
    return quantized.float() * scales.float().unsqueeze(-1)
