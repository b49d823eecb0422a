"""From logits to drawn tokens, defined so that every device draws the same token from the same logits.

Sums of floats depend on their order, and no two devices add in the same one. So the weights that are summed here are
whole numbers, and each step to them is one float32 operation rounded to nearest, or exact:

    gap      = max(logits) - logit                          0 for the likeliest token
    octaves  = gap * (log2(e) / temperature)                two roundings
    weight   = floor(2^32 * 2^-octaves), or 0 from 32 octaves on; 2^x by the polynomial below, no fused multiply-add
    uniform  = 24 bits of Philox4x32-10: key = seed, counter = (output index, choice, 0, 0)

Which tokens may be drawn depends on weights of what is likelier, so tokens that tie stand or fall together:

    top-k    fewer than k tokens have a smaller gap
    top-p    the tokens of smaller gap weigh less than top_p (in 24 bits) of what top-k left
    min-p    2^-octaves is at least min_p

The token drawn is the first, in id order, at which the sum of the weights of the tokens kept passes
`uniform * total / 2^24`. Temperature 0 takes the likeliest token, the first of several. A row without a finite largest
logit yields some token id. Weights below 2^-32 of the largest cannot be drawn; a uniform of 24 bits could not tell.
"""

import math

import torch
from torch import Tensor

ONE = 32  # bits of the largest weight, and the octaves that weights span
UNIFORM_BITS = 24
# 2^x by its Taylor series, of relative error 1.3e-7 over [-0.5, 0.5], what float32 rounds to anyway.
TAYLOR = tuple(math.log(2) ** power / math.factorial(power) for power in range(6, -1, -1))
LOG2_E = math.log2(math.e)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    output_index: Tensor,
    choice: Tensor,
) -> Tensor:
    """Token ids [rows] int64 drawn from `logits` [rows, vocabulary] float32; every parameter is [rows].

    `temperature`, `top_p` and `min_p` are float32, the others int64: top_k 0 limits nothing, `seed` holds the bits of
    an unsigned number, `choice` is the number of the sample among those of one request.
    """
    uniform = uniforms(seed, output_index, choice)
    steepness = torch.div(torch.full_like(temperature, LOG2_E), temperature)  # infinite at temperature 0
    uniform = torch.where(steepness < torch.inf, uniform, 0)
    columns = (each.unsqueeze(-1) for each in (steepness, top_k, top_p, min_p, uniform))
    return _draw(logits, *columns)


def uniforms(seed: Tensor, output_index: Tensor, choice: Tensor) -> Tensor:
    """The upper 24 bits of Philox's first word, int64. Source: Salmon et al., "Parallel random numbers", SC 2011."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = output_index & low, choice & low, torch.zeros_like(seed), torch.zeros_like(seed)
    k0, k1 = seed & low, seed >> 32 & low
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # of 64 bits: the sign is one of them
        c0, c1, c2, c3 = right >> 32 & low ^ c1 ^ k0, right & low, left >> 32 & low ^ c3 ^ k1, left & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c0 >> 32 - UNIFORM_BITS


def share(total: Tensor, of_24_bits: Tensor) -> Tensor:
    """floor(total * part / 2^24) in int64 without overflow, for totals below 2^56."""
    high, low = total >> UNIFORM_BITS, total & (1 << UNIFORM_BITS) - 1
    return high * of_24_bits + (low * of_24_bits >> UNIFORM_BITS)


def _draw(logits: Tensor, steepness: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    gaps = logits.amax(dim=-1, keepdim=True) - logits
    likely = _powers(gaps * torch.where(gaps == 0, 0.0, steepness))
    weights = (likely * 2.0**ONE).long()
    kept = torch.where(gaps <= _widest_gap(gaps, weights, top_k, top_p), weights, 0)
    kept = torch.where(likely >= min_p, kept, 0)
    sums = kept.cumsum(dim=-1)
    target = share(sums[:, -1:], uniform)
    ids = (sums <= target).sum(dim=-1)
    return ids.clamp_(max=logits.shape[-1] - 1)


def _powers(octaves: Tensor) -> Tensor:
    """2^-octaves in float32, 0 from 32 octaves on."""
    near = octaves < ONE
    exponent = torch.where(near, -octaves, 0.0)
    whole = torch.floor(exponent + 0.5)
    part = exponent - whole
    power = torch.full_like(part, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        power = power * part + coefficient
    scale = (whole.int() + 127 << 23).view(torch.float32)  # 2^whole
    return torch.where(near, power * scale, 0.0)


def _widest_gap(gaps: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The largest gap [rows, 1] of a token that both filters keep."""
    rising, order = gaps.sort(dim=-1)
    ranked = weights.gather(-1, order)
    limited = top_k > 0
    last_of_k = rising.gather(-1, top_k.clamp(1, gaps.shape[-1]) - 1)
    in_k = ~limited | (rising <= last_of_k)
    ranked = torch.where(in_k, ranked, 0)
    likelier = ranked.cumsum(dim=-1) - ranked
    nucleus = share(ranked.sum(dim=-1, keepdim=True), (top_p * 2.0**UNIFORM_BITS).long())
    in_p = (top_p >= 1) | (likelier < nucleus.clamp(min=1))
    return torch.where(in_k & in_p, rising, 0.0).amax(dim=-1, keepdim=True)
