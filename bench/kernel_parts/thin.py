"""Sampling and low-rank adapters."""

from functools import partial

import torch
from penstock_kernels import sampling
from penstock_kernels.gpu import lora as gpu_lora
from penstock_kernels.gpu import sampling as gpu_sampling
from torch import Tensor

from bench.kernel_parts.contest import Contest, MeasureCase, Sizes

RANK = 16
FILTERS = {"free": (0, 1.0), "top-k 50": (50, 1.0), "top-p 0.95": (0, 0.95)}


def sampling_cases(sizes: Sizes) -> list[MeasureCase]:
    """A model's peaked logits, without filters and with each; logits are read at least once."""
    return [
        MeasureCase(
            "sample",
            f"{rows} rows of {sizes.vocabulary}, {name}",
            "the same in torch, by a sort",
            4 * rows * sizes.vocabulary,
            0,
            partial(_sample, sizes, rows, *FILTERS[name]),
        )
        for name in FILTERS
        for rows in sizes.sampled
    ]


def _sample(sizes: Sizes, rows: int, top_k: int, top_p: float) -> Contest:
    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=sizes.device)

    arguments = {
        "temperature": column(0.8, torch.float32),
        "top_k": column(top_k, torch.int64),
        "top_p": column(top_p, torch.float32),
        "min_p": column(0.0, torch.float32),
        "seed": sizes.below(2**62, rows),
        "output_index": sizes.below(1000, rows),
        "choice": column(0, torch.int64),
    }
    logits = sizes.random(rows, sizes.vocabulary, dtype=torch.float32) * 2.5
    return Contest(
        lambda: gpu_sampling.sample(logits, **arguments),
        lambda: sampling.sample(logits, **arguments),
    )


def lora_cases(sizes: Sizes) -> list[MeasureCase]:
    """Shrink and expand of one square layer; the peer is cuBLAS with one adapter for everybody."""
    return [
        MeasureCase(
            "lora_shrink, lora_expand",
            f"{tokens} tokens, {segments} segments, rank {RANK}",
            "two products with one adapter, add_",
            sizes.element * sizes.hidden * (3 * tokens + 2 * segments * RANK),
            4 * tokens * sizes.hidden * RANK,
            partial(_lora, sizes, tokens, segments),
        )
        for tokens, segments in sizes.adapted
    ]


def _lora(sizes: Sizes, tokens: int, segments: int) -> Contest:
    x, out = sizes.random(tokens, sizes.hidden), sizes.random(tokens, sizes.hidden)
    down, up = (sizes.random(1, RANK, sizes.hidden).expand(segments, -1, -1).contiguous() / 64 for _ in range(2))
    starts = torch.linspace(0, tokens, segments + 1, device=sizes.device).to(torch.int32)
    adapters = torch.arange(segments, device=sizes.device, dtype=torch.int32)
    peers = out.clone()

    def ours() -> Tensor:
        gpu_lora.lora_expand(gpu_lora.lora_shrink(x, down, starts, adapters), up, starts, adapters, out)
        return out

    return Contest(ours, lambda: peers.addmm_(x @ down[0].T, up[0]))
