"""Every served architecture against `transformers` in float32, in every mode at once.

    python -m tests.engine.parity_table [name ...]

prints a line for each: greedy tokens compared, how many differ, the largest difference of a log probability. Exits with
1 if any is beyond what the tests allow. One run of an architecture goes through ragged batches, chunked prefill mixed
with decoding, prefix hits of whole pages and parts of pages, and preemption.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from penstock_engine import Engine, EngineConfig, Request
from penstock_engine.config import Kernels
from penstock_kernels.cpu import support

from tests.engine.driving import Parity, Run, greedy, parity, run_all
from tests.engine.tiny import LLAMA3_ROPE, YARN_ROPE, TinyModel, make_tiny, random_prompt

OUTPUT = 40
LOGPROB_TOLERANCE = 1e-4  # float32 noise between two orders of summation is about 1e-5 here

UNGROUPED = {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA2 = {
    "sliding_window": 20,
    "query_pre_attn_scalar": 24,
    "layer_types": ALTERNATING,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 4}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}},
    ),
    "llama-rope-dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0},
            "max_position_embeddings": 48,
            "at_once": 40,  # within the trained length; beyond it, as it decodes with its own cache
        },
    ),
    "llama-rope-yarn": ("llama", {"rope_parameters": YARN_ROPE}),
    "llama-rope-yarn-factor": ("llama", {"rope_parameters": {**YARN_ROPE, "attention_factor": 1.4}}),
    "llama-rope-yarn-mscale": ("llama", {"rope_parameters": {**YARN_ROPE, "mscale": 1.5, "mscale_all_dim": 0.5}}),
    "llama-rope-yarn-untruncated": ("llama", {"rope_parameters": {**YARN_ROPE, "truncate": False}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 20}),
    "mistral-narrow-window": ("mistral", {"sliding_window": 3}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "sliding_window": None}),
    "mixtral-window": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 20}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "phi3-partial-rotary": ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "phi3-window": ("phi3", {"sliding_window": 20}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 32}),
    "qwen3-experts": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3-experts-unnormalised": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": False}),
    "qwen3-experts-and-dense": ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [1]}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-uncapped": ("gemma2", {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("gemma3", {"sliding_window": 20, "query_pre_attn_scalar": 24, "layer_types": ALTERNATING}),
    # Run by transformers' own code, with our attention in it.
    "bridged-gpt2": ("gpt2", UNGROUPED),
    "bridged-gpt-neox": ("gpt_neox", UNGROUPED),
    "bridged-opt": ("opt", {**UNGROUPED, "word_embed_proj_dim": 64, "ffn_dim": 96, "init_std": 0.2}),
    "bridged-starcoder2-window": ("starcoder2", {"sliding_window": 20}),
    "bridged-cohere": ("cohere", {}),
}


def ragged_requests() -> list[Request]:
    """Lengths around the page size, prompts that share whole pages and parts of pages, two namespaces."""
    stem = random_prompt(41, seed=99)
    prompts = [random_prompt(length, seed=length) for length in (1, 2, 15, 16, 17, 33, 70)]
    prompts += [stem, [*stem, 5, 6], stem[:37], [*stem[:35], 9, 9, 9], list(stem)]
    requests = [Request(f"r{at}", prompt, greedy(OUTPUT)) for at, prompt in enumerate(prompts)]
    return [*requests, Request("elsewhere", list(stem), greedy(OUTPUT), namespace="other")]


def run_every_mode(model: TinyModel, kernels: Kernels = "auto") -> tuple[Parity, Run, Engine]:
    """A budget of 16 cuts prompts into chunks; 16 pages make five running requests preempt one another."""
    config = EngineConfig(dtype="float32", token_budget=16, max_running=5, kv_pages=16, kernels=kernels)
    engine = Engine.from_folder(model.folder, config)
    requests = ragged_requests()
    run = run_all(engine, requests)
    return parity(model, requests, run), run, engine


@dataclass(frozen=True)
class Line:
    """One architecture's line of the table."""

    name: str
    kernels: str
    parity: Parity
    preemptions: int
    cached: int

    @property
    def ok(self) -> bool:
        return self.parity.wrong == 0 and self.parity.worst_logprob < LOGPROB_TOLERANCE

    def __str__(self) -> str:
        found = self.parity
        verdict = "ok" if self.ok else "WRONG"
        counts = (
            f"{found.tokens:>7} {found.wrong:>6} {found.worst_logprob:>12.1e} {self.preemptions:>10} {self.cached:>7}"
        )
        return f"{self.name:<30} {self.kernels:<8} {counts}  {verdict}"


COUNTS = f"{'tokens':>7} {'wrong':>6} {'max |dlogp|':>12} {'preempted':>10} {'cached':>7}"
HEADER = f"{'architecture':<30} {'kernels':<8} {COUNTS}"


def kernels_of(name: str) -> tuple[Kernels, ...]:
    """Those that run the architecture here."""
    compiled = not support.lacking() and not name.startswith("bridged")
    return ("compiled", "torch") if compiled else ("torch",)


def measure(name: str, kernels: Kernels) -> Line:
    """Make the tiny model `name`, run it in every mode, compare."""
    kind, overrides = ARCHITECTURES[name]
    with tempfile.TemporaryDirectory() as folder:
        found, _, engine = run_every_mode(make_tiny(Path(folder), kind, **overrides), kernels)
    stats = engine.stats()
    return Line(name, kernels, found, stats.preemptions, stats.tokens_cached)


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    print(HEADER)
    lines = []
    for name in names or ARCHITECTURES:
        for kernels in kernels_of(name):
            lines.append(measure(name, kernels))
            print(lines[-1], flush=True)
    print(f"{sum(line.ok for line in lines)} of {len(lines)} within {LOGPROB_TOLERANCE:.0e}")
    return 0 if all(line.ok for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
