"""Random quantized layers, products in float64 to hold kernels to, and how far a kernel may be from them."""

import torch
from penstock_kernels.quant_formats import Int4Codes
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed + sum(shape))).to(dtype)


def random_int4(n: int, k: int, group: int, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> Int4Codes:
    """Every code, zeros 0 to 15 and scales between a half and two: nothing that an error could hide behind."""
    draw = seeded(seed)
    groups = k // group
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=draw)
    zeros = torch.randint(0, 16, (n, groups), dtype=torch.uint8, generator=draw)
    scales = 2 ** (torch.rand(n, groups, generator=draw) * 2 - 1)
    return Int4Codes(codes, scales.to(dtype), zeros)


def random_g_idx(k: int, group: int, seed: int = 0) -> Tensor:
    """Columns dealt out to groups of equal size, as act-order leaves them."""
    return (torch.arange(k) // group)[torch.randperm(k, generator=seeded(seed))].int()


def exact_product(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64."""
    product = x.double() @ weights.double().T
    return product if bias is None else product + bias.double()


def close(got: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `got` is x times weights [N, K] but for its own rounding and that of float32 sums."""
    exact = exact_product(x, weights, bias)
    magnitude = x.double().abs() @ weights.double().abs().T
    bound = torch.finfo(got.dtype).eps * exact.abs() + 1e-6 * (magnitude + 1)
    return bool(((got.double() - exact).abs() <= bound).all())
