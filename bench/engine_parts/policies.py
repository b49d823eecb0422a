"""When waiting requests are let in, compared on one ragged trace: continuously, a whole batch at a time, one at a time.

python -m bench.engine_parts.policies FOLDER --threads N [--requests N] [--rounds N]

The trace is long enough that its end, where a batch runs dry whatever the policy, weighs little. A second of
`continuous` is a minute of `request`, so the model is a small one (llama-40m, 50 MB of matrices); where a step's time
grows less with its batch than on this CPU, as on a GPU, the ratios are larger.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, get_args

from penstock_engine import Engine, EngineConfig
from penstock_engine.config import Policy

from bench.engine_parts.loads import RaggedTrace, Run, run

MOST_RUNNING = 32
MOST_TOKENS = 1024  # of a prompt or an output
ROUNDS_OF_ONE_AT_A_TIME = 1  # it takes as long as everything else together


def compare(folder: Path, threads: int, trace: RaggedTrace, rounds: int) -> dict[str, Any]:
    """Each policy's tokens per second and mean latency, medians of the rounds, and what `continuous` gains."""
    engines = {policy: _engine(folder, threads, policy) for policy in get_args(Policy)}
    runs: dict[str, list[Run]] = {policy: [] for policy in engines}
    for engine in engines.values():
        run(engine, RaggedTrace(MOST_RUNNING, 16, 8, seed=1).draw(engine.model_config.vocab_size, MOST_TOKENS))
    for number in range(rounds):
        for policy, engine in engines.items():
            if policy != "request" or number < ROUNDS_OF_ONE_AT_A_TIME:
                requests = trace.draw(engine.model_config.vocab_size, MOST_TOKENS)
                runs[policy].append(run(engine, requests))
    figures = {policy: _summary(done) for policy, done in runs.items()}
    return {"trace": asdict(trace), "max_running": MOST_RUNNING, "policies": figures, **_gains(figures)}


def _engine(folder: Path, threads: int, policy: Policy) -> Engine:
    """Without the prefix cache: the rounds repeat each other."""
    config = EngineConfig(
        max_running=MOST_RUNNING,
        threads=threads,
        dtype="bfloat16",
        policy=policy,
        prefix_cache=False,
        max_waiting=10_000,
    )
    return Engine.from_folder(folder, config)


def _summary(runs: list[Run]) -> dict[str, float]:
    return {
        "tokens_per_s": median(each.tokens_per_s for each in runs),
        "mean_latency_s": median(each.mean_latency for each in runs),
        "steps": runs[0].steps,
        "output_tokens": runs[0].output_tokens,
        "rounds": len(runs),
    }


def _gains(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Throughput over the other's, which is to be high, and mean latency over the other's, which is to be low."""
    best = figures["continuous"]
    others = {policy: each for policy, each in figures.items() if policy != "continuous"}
    throughput = {f"ratio_{policy}": best["tokens_per_s"] / each["tokens_per_s"] for policy, each in others.items()}
    latency = {
        f"latency_over_{policy}": best["mean_latency_s"] / each["mean_latency_s"] for policy, each in others.items()
    }
    return {key: round(value, 3) for key, value in (throughput | latency).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    trace = RaggedTrace(args.requests, prompt_median=32, output_median=32)
    print(json.dumps(compare(args.folder, args.threads, trace, args.rounds)))


if __name__ == "__main__":
    main()
