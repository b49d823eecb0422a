"""A part: our attention over the paged pool beside torch's SDPA and flex_attention over contiguous K and V."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.gpu_parts.job import Job, job
from bench.kernel_parts.contest import MeasureCase, Sizes
from bench.kernel_parts.heavy import attention_cases
from bench.kernel_parts.timing import cache_bytes, sets_needed, timed

APART = 2e-2  # relative, of two answers rounded to bfloat16
FLEX_SETS = 4  # of inputs: from a batch of 8 on they outgrow the second-level cache


def sizes_of(job: Job) -> Sizes:
    """The shape's own heads; float32 on a CPU, where Triton's interpreter has no bfloat16."""
    shape, plan = job.shape, job.shape.plan
    sizes = Sizes(
        device=job.device,
        hidden=shape.hidden,
        inner=shape.inner,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocabulary=shape.vocabulary,
        decoding=tuple((batch, plan.context) for batch in plan.batches),
        prefill=(plan.length,),
    )
    return sizes if job.on_gpu else replace(sizes, dtype=torch.float32)


def contest(job: Job, case: MeasureCase) -> None:
    """Our kernel and SDPA, as `bench.kernels` has them."""
    sets = [case.make() for _ in range(sets_needed(case.moved, cache_bytes(job.device)))]
    _tell(job, case, "penstock", [each.ours for each in sets])
    _tell(job, case, "torch SDPA", [each.peer for each in sets])


def _tell(job: Job, case: MeasureCase, who: str, calls: list[Callable[[], Tensor]]) -> None:
    timing = timed(calls, job.device)
    cost = {"moved": case.moved, "flops": {"bfloat16": case.flops}}
    job.tell("attention", who, kernel=case.kernel, size=case.size, seconds=timing.seconds, spread=timing.spread, **cost)


def flex(job: Job, sizes: Sizes, runs: int, queries: int, context: int) -> Callable[[], Tensor]:
    """One call of flex_attention, compiled on a GPU, after a look whether it answers as SDPA does."""
    q = sizes.random(runs, sizes.heads, queries, sizes.head_dim)
    k, v = (sizes.random(runs, sizes.kv_heads, context, sizes.head_dim) for _ in range(2))
    causal = queries > 1
    mask = create_block_mask(_sees, None, None, queries, context, device=job.device) if causal else None
    attend: Any = torch.compile(flex_attention, dynamic=False) if job.on_gpu else flex_attention
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).float()
    got = attend(q, k, v, block_mask=mask, enable_gqa=True).float()
    assert (got - wanted).norm() < APART * wanted.norm(), "flex_attention answers otherwise than SDPA"
    return lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)


def _sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


@torch.inference_mode()
def run(job: Job) -> None:
    """Ours and SDPA first: flex_attention is compiled for each size."""
    sizes = sizes_of(job)
    cases = attention_cases(sizes)
    for case in cases:
        contest(job, case)
    shapes = [*((runs, 1, context) for runs, context in sizes.decoding), *((1, each, each) for each in sizes.prefill)]
    for case, (runs, queries, context) in zip(cases, shapes, strict=True):
        count = min(FLEX_SETS, sets_needed(case.moved, cache_bytes(job.device)))
        _tell(job, case, "torch flex_attention", [flex(job, sizes, runs, queries, context) for _ in range(count)])


if __name__ == "__main__":
    run(job())
