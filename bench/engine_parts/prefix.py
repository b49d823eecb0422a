"""Jobs that share a beginning: how many prompt tokens are computed, beside how few could be.

python -m bench.engine_parts.prefix FOLDER --threads N

The optimum computes the shared tokens once and every tail once.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock_engine import Engine, EngineConfig, Request

from bench.engine_parts.loads import RaggedTrace, Run, SharedPrefix, run


def measure(folder: Path, threads: int, load: SharedPrefix) -> dict[str, Any]:
    """Computed over optimal, and the hit rate (cached over all prompt tokens) beside the optimal one."""
    prompt_tokens = sum(len(each.prompt_ids) for each in load.draw(vocabulary=2))
    done, computed, cached = _run(folder, threads, load)
    optimal = prompt_tokens - (load.jobs - 1) * load.shared
    assert computed + cached == prompt_tokens, "a prompt token is either found or computed, once"
    return {
        "load": asdict(load),
        "prompt_tokens": prompt_tokens,
        "computed_tokens": computed,
        "optimal_tokens": optimal,
        "prefix_computed_over_optimal": round(computed / optimal, 4),
        "hit_rate": round(cached / prompt_tokens, 4),
        "optimal_hit_rate": round(1 - optimal / prompt_tokens, 4),
        "seconds": round(done.seconds, 3),
    }


def _run(folder: Path, threads: int, load: SharedPrefix) -> tuple[Run, int, int]:
    """The run, and how many prompt tokens were computed and how many found in the cache."""
    engine = Engine.from_folder(folder, EngineConfig(threads=threads, dtype="bfloat16"))
    vocabulary = engine.model_config.vocab_size
    run(engine, RaggedTrace(8, prompt_median=32, output_median=4, seed=1).draw(vocabulary, most=64))
    before = engine.stats()
    requests = load.draw(vocabulary)
    done = run(engine, requests)
    after = engine.stats()
    computed = after.tokens_computed - before.tokens_computed - _decoded(requests)
    return done, computed, after.tokens_cached - before.tokens_cached


def _decoded(requests: list[Request]) -> int:
    """Output tokens that run through the model: all but each request's last."""
    return sum((each.sampling.max_tokens or 0) - 1 for each in requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, args.threads, SharedPrefix())))


if __name__ == "__main__":
    main()
