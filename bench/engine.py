"""Step time and throughput of the engine at several batch sizes, beside `transformers` on the same weights.

python -m bench.engine [MODEL_FOLDER] [--threads N] [--prompt N] [--output N] [--json PATH]
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from penstock_engine import Engine, EngineConfig, Request, SamplingParams
from penstock_engine.config import DType


@dataclass(frozen=True)
class Load:
    """`batch` requests at once, each of `prompt` random tokens and `output` greedy ones."""

    batch: int
    prompt: int
    output: int

    def prompts(self, vocabulary: int) -> list[list[int]]:
        draw = random.Random(self.batch)
        return [[draw.randrange(vocabulary) for _ in range(self.prompt)] for _ in range(self.batch)]


def measure_engine(folder: Path, load: Load, threads: int, dtype: DType) -> dict[str, float]:
    """Tokens per second with prefill, and the median step in steady decoding."""
    config = EngineConfig(
        max_running=load.batch, token_budget=max(512, load.batch), threads=threads, dtype=dtype, prefix_cache=False
    )
    engine = Engine.from_folder(folder, config)
    sampling = SamplingParams(temperature=0, max_tokens=load.output, ignore_eos=True)
    for number, prompt in enumerate(load.prompts(engine.model_config.vocab_size)):
        engine.submit(Request(f"r{number}", prompt, sampling))
    decode_steps: list[float] = []
    start = time.perf_counter()
    while engine.has_work:
        before = time.perf_counter()
        output = engine.step()
        if output.counts.decoding == load.batch:
            decode_steps.append(time.perf_counter() - before)
    total = time.perf_counter() - start
    return {"tokens_per_s": load.batch * load.output / total, "step_ms": statistics.median(decode_steps) * 1e3}


def measure_generate(folder: Path, load: Load, threads: int, dtype: str) -> dict[str, float]:
    """`transformers` generate on the same prompts, prefill included."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.tensor(load.prompts(model.config.vocab_size))
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=load.output,
            min_new_tokens=load.output,
            do_sample=False,
            pad_token_id=0,
        )
    return {"tokens_per_s": load.batch * load.output / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("examples/invoices/model"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'batch':>6} {'engine tok/s':>13} {'step ms':>8} {'generate tok/s':>15} {'ratio':>6}")
    for batch in args.batch:
        load = Load(batch, args.prompt, args.output)
        own = measure_engine(args.folder, load, args.threads, args.dtype)
        peer = measure_generate(args.folder, load, args.threads, args.dtype)
        ratio = own["tokens_per_s"] / peer["tokens_per_s"]
        print(f"{batch:6} {own['tokens_per_s']:13.0f} {own['step_ms']:8.2f} {peer['tokens_per_s']:15.0f} {ratio:6.1f}")
        rows.append({**asdict(load), "engine": own, "generate": peer, "ratio_generate": ratio})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"where": where(args), "rows": rows}, indent=2) + "\n")


def where(args: argparse.Namespace) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "model": str(args.folder),
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "dtype": args.dtype,
        "torch": torch.__version__,
        "commit": commit,
    }


if __name__ == "__main__":
    main()
