"""The draw of `penstock_kernels.sampling` on a CPU: its very tokens, without a sort of the vocabulary.

What may be drawn is settled by the likeliest few: 64 candidates nearly always hold a nucleus, and on a 2-core AMD EPYC
a full sort of one row of 128k costs 10.8 ms where a partial one costs 0.2.

Weights are whole numbers in float32, where they are exact, and summed in float64: to 2^53 that is exact too, enough for
vocabularies of two million. Over 64k numbers there a product takes 4 us, a conversion to int64 18, a comparison 23 and
a mask 38: so weights that are too small are clamped to what rounds to 0, and masks are for filters alone.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from penstock_kernels import sampling as definition
from penstock_kernels.logprobs import chosen_logprobs
from penstock_kernels.sampling import LOG2_E, ONE, TAYLOR, UNIFORM_BITS, share
from torch import Tensor

from penstock_engine.philox import uniform_bits

Draw = Callable[..., Tensor]  # as `penstock_kernels.sampling.sample`
Logprobs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # as `penstock_kernels.logprobs.chosen_logprobs`

PROBES = (64, 1024, 8192)  # widths of the partial sorts that are tried in turn
BLOCK = 65_536  # logits worked on at once, 256 KB: what one operation leaves is still in a core's cache for the next


def drawing_on(device: torch.device) -> Draw:
    """What draws there: kernels where Triton compiles them, this module on a CPU, elsewhere the definition itself."""
    if device.type == "cpu":
        return draw
    return _draw_by_kernels if _compiles(device) else definition.sample


def logprobs_on(device: torch.device) -> Logprobs:
    """What finds the log probabilities of tokens there."""
    return _logprobs_by_kernels if _compiles(device) else chosen_logprobs


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("triton") is not None


def _draw_by_kernels(logits: Tensor, **parameters: Tensor) -> Tensor:
    from penstock_kernels.gpu.sampling import sample  # imports Triton

    # Triton launches on the current device, wherever its tensors lie.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch gives it no types
        return sample(logits, **parameters)


def _logprobs_by_kernels(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    from penstock_kernels.gpu import logprobs  # imports Triton

    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # as above
        return logprobs.chosen_logprobs(logits, tokens)


def draw(
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
    """As `penstock_kernels.sampling.sample`, for tensors on a CPU."""
    bits = uniform_bits(seed.numpy().view(np.uint64), output_index.numpy(), choice.numpy())
    steepness = torch.div(torch.full_like(temperature, LOG2_E), temperature)  # infinite at temperature 0
    uniform = torch.where(steepness < torch.inf, torch.from_numpy(bits), 0)
    columns = [each.unsqueeze(-1) for each in (steepness, top_k, top_p, min_p, uniform)]
    size = max(1, BLOCK // logits.shape[-1])
    blocks = zip(*(torch.split(each, size) for each in (logits, *columns)), strict=True)
    return torch.cat([_draw(*block) for block in blocks])


def _draw(logits: Tensor, steepness: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    gaps = logits.amax(dim=-1, keepdim=True) - logits
    if bool(steepness.isinf().any()):
        steepness = torch.where(gaps == 0, 0.0, steepness)
    likely = _powers(gaps * steepness)
    weights = (likely * 2.0**ONE).floor_()
    filtered = (top_k > 0) | (top_p < 1)
    if bool(filtered.any()):
        widest = torch.where(filtered, _widest_gap(gaps, weights, top_k, top_p), torch.inf)
        weights = torch.where(gaps <= widest, weights, 0.0)
    if bool((min_p > 0).any()):
        weights = torch.where(likely >= min_p, weights, 0.0)
    sums = weights.double().cumsum(dim=-1)
    target = share(sums[:, -1:].long(), uniform).double()
    return torch.searchsorted(sums, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def _powers(octaves: Tensor) -> Tensor:
    """2^-octaves in float32, 2^-33 from 32 octaves on; `octaves` is used up. The roundings are the definition's."""
    part = F.threshold(octaves.neg_(), -ONE, -ONE - 1, inplace=True)
    whole = (part + 0.5).floor_()
    part -= whole
    power = part * TAYLOR[0]
    for coefficient in TAYLOR[1:-1]:
        power.add_(coefficient).mul_(part)
    power += TAYLOR[-1]
    power *= whole.int().add_(127).bitwise_left_shift_(23).view(torch.float32)  # 2^whole
    return power


def _widest_gap(gaps: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The largest gap [rows, 1] of a token that both filters keep, where one of them limits."""
    limited, last = top_k > 0, top_k.clamp(1, gaps.shape[-1]) - 1
    all_weights, part = weights.sum(dim=-1, keepdim=True, dtype=torch.float64), (top_p * 2.0**UNIFORM_BITS).long()
    for width in _widths(gaps.shape[-1], int(top_k.max())):
        rising, order = gaps.topk(width, dim=-1, largest=False) if width < gaps.shape[-1] else gaps.sort(dim=-1)
        last_of_k = rising.gather(-1, last)
        in_k = ~limited | (rising <= last_of_k)
        ranked = torch.where(in_k, weights.gather(-1, order), 0.0).double()
        found = ranked.sum(dim=-1, keepdim=True)
        nucleus = share(torch.where(limited, found, all_weights).long(), part).clamp_(min=1)
        # Ties with the last of k may lie beyond what was sorted; so may a part of the nucleus.
        settled = (top_p >= 1) | torch.where(limited, rising[:, -1:] > last_of_k, found >= nucleus)
        if bool(settled.all()):
            break
    in_p = (top_p >= 1) | (ranked.cumsum(dim=-1) - ranked < nucleus)
    return torch.where(in_k & in_p, rising, 0.0).amax(dim=-1, keepdim=True)


def _widths(vocabulary: int, top_k: int) -> Iterator[int]:
    """How many of the likeliest to sort: at least `top_k`, and at last all of them."""
    yield from (max(probe, top_k) for probe in PROBES if max(probe, top_k) < vocabulary)
    yield vocabulary
