"""A contestant: `transformers` on the same folder, in bfloat16, greedy.

python -m bench.engine_parts.transformers_peer FOLDER --way generate --threads N --sequences N --context N

The way `generate` runs a static batch over a contiguous cache; `generate_batch` is its own continuous batching, paged.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from bench.engine_parts.protocol import Load, Measured, Ready, serve

BLOCK = 256  # tokens: its default, and its kernels' size
MOST_TOKENS = 2048  # in one step


def start(folder: Path, threads: int, way: str, sequences: int, context: int) -> Ready:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if way == "generate":
        return Ready(lambda load: generate(model, load), {"attention": model.config._attn_implementation})
    model.set_attn_implementation("paged|sdpa")
    # Left to itself it takes most of the machine's memory for its cache, 10 GB written in 16 s at each call.
    blocks = sequences * (-(-context // BLOCK) + 1)
    room = ContinuousBatchingConfig(
        page_size=BLOCK, num_blocks=blocks, max_batch_tokens=MOST_TOKENS, max_requests_per_batch=sequences
    )
    return Ready(lambda load: generate_batch(model, load, room), {"attention": model.config._attn_implementation})


@torch.inference_mode()
def generate(model: Any, load: Load) -> Measured:
    ids = torch.tensor(load.prompts(model.config.vocab_size))
    exactly = {"max_new_tokens": load.output, "min_new_tokens": load.output}
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **exactly)
    seconds = time.perf_counter() - start
    assert out.shape == (load.batch, load.prompt + load.output), f"generate ended early: {tuple(out.shape)}"
    return Measured(seconds, [], out[:, load.prompt].tolist())


def generate_batch(model: Any, load: Load, room: ContinuousBatchingConfig) -> Measured:
    """The manager of the first call serves all later ones, so that its setting up falls into the warm-up."""
    prompts = load.prompts(model.config.vocab_size)
    greedy = GenerationConfig(max_new_tokens=load.output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    start = time.perf_counter()
    out = model.generate_batch(
        inputs=prompts, generation_config=greedy, continuous_batching_config=room, persistent_manager=True
    )
    seconds = time.perf_counter() - start
    by_prompt = {tuple(each.prompt_ids): each.generated_tokens for each in out.values()}
    outputs = [by_prompt[tuple(prompt)] for prompt in prompts]
    assert all(len(each) == load.output for each in outputs), "generate_batch ended early"
    return Measured(seconds, [], [each[0] for each in outputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--way", choices=("generate", "generate_batch"), required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: start(args.folder, args.threads, args.way, args.sequences, args.context))


if __name__ == "__main__":
    main()
