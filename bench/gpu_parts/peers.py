"""A part: `transformers` on the same shape and the same device, greedy, in bfloat16.

python -m bench.gpu_parts.peers --way generate|compiled|generate_batch ...

`generate` decodes a batch over a static cache with SDPA; `compiled` is the same with the forward pass compiled and
captured, as it does by itself for such a cache; `generate_batch` is its own continuous batching. Its steps cannot be
looked at, so decoding is the difference of two runs on the same prompts, one of which says a token alone.
"""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LlamaConfig

from bench.engine_parts.protocol import Load
from bench.gpu_parts.job import Job, costing, job
from bench.gpu_parts.own import settle

BLOCK = 256  # tokens: its default, and its kernels' size
Generate = Callable[[Load], None]


def make_peer(job: Job, attention: str) -> Any:
    """A model with its own random weights, drawn on the device."""
    config = LlamaConfig(**{key: value for key, value in job.shape.config.items() if key != "model_type"})
    torch.manual_seed(0)
    with torch.device(job.device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval()


def generating(job: Job, model: Any, *, compiled: bool) -> Generate:
    def generate(load: Load) -> None:
        ids = torch.tensor(load.prompts(job.shape.vocabulary), device=job.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            max_new_tokens=load.output,
            cache_implementation="static",
            disable_compile=not compiled,
        )
        assert out.shape == (load.batch, load.prompt + load.output), f"generate ended early: {tuple(out.shape)}"

    return generate


def batching(job: Job, model: Any) -> Generate:
    plan = job.shape.plan
    sequences = max(plan.batches)
    blocks = sequences * (-(-(plan.context + plan.steps + 1) // BLOCK) + 1)
    # The name of a block's size is another one in some versions.
    size = "page_size" if "page_size" in inspect.signature(ContinuousBatchingConfig).parameters else "block_size"
    room = ContinuousBatchingConfig(
        **{size: BLOCK}, num_blocks=blocks, max_batch_tokens=plan.budget, max_requests_per_batch=sequences
    )

    def generate(load: Load) -> None:
        prompts = load.prompts(job.shape.vocabulary)
        greedy = GenerationConfig(max_new_tokens=load.output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        out = model.generate_batch(
            inputs=prompts, generation_config=greedy, continuous_batching_config=room, persistent_manager=True
        )
        assert all(len(each.generated_tokens) == load.output for each in out.values()), "generate_batch ended early"
        assert len(out) == load.batch

    return generate


def measure(job: Job, generate: Generate, batch: int, who: str) -> None:
    """One row, after a run of the same size that is not timed."""
    plan = job.shape.plan
    generate(Load(batch, plan.context, plan.steps + 1, seed=1))
    whole, first = (_seconds(job, generate, Load(batch, plan.context, output)) for output in (plan.steps + 1, 1))
    step = (whole - first) / plan.steps
    context = plan.context + plan.steps / 2
    cost = costing(job.shape.decode(batch, context, job.precision))
    row = {"batch": batch, "context": context, "seconds_in_all": whole, "seconds_to_first": first, **cost}
    if step > 0:
        job.tell("decode", who, tokens_per_s=batch / step, seconds=step, **row)
    else:
        job.tell("decode", who, missing="its steps are lost in the noise of its prefill", **row)


def _seconds(job: Job, generate: Generate, load: Load) -> float:
    settle(job)
    start = time.perf_counter()
    generate(load)
    settle(job)
    return time.perf_counter() - start


def run(job: Job) -> None:
    plan = job.shape.plan
    if job.way == "generate_batch":
        generate, batches = batching(job, make_peer(job, "paged|sdpa")), plan.batches
    else:
        generate = generating(job, make_peer(job, "sdpa"), compiled=job.way == "compiled")
        batches = plan.peer_batches
    for batch in batches:
        measure(job, generate, batch, f"transformers {job.way}")


if __name__ == "__main__":
    run(job())
