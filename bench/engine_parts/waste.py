"""Slots of the KV pool that running requests hold and no token fills.

python -m bench.engine_parts.waste FOLDER --threads N

Sampled after every step of a long run of requests whose live length is 200 on average: slots of the pages in use
against tokens whose K and V lie in them. A slot that waits for a prompt's later chunk counts as waste, as does the
rest of a last page. Half a page of 16 for 200 tokens is 3.6%; less is not to be had with pages of that size.
"""

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock_engine import Engine, EngineConfig, Request, StepOutput

from bench.engine_parts.loads import greedy, run, tokens

MEAN_LIVE = 200  # tokens, over a request's life
OUTPUT = 96


@dataclass
class Samples:
    """Sums over the steps that leave requests running."""

    engine: Engine
    slots: int = 0
    tokens: int = 0
    requests: int = 0
    steps: int = field(default=0)

    def take(self, _: StepOutput) -> None:
        running = self.engine._scheduler.running
        if running:
            self.slots += self.engine.stats().pages_in_use * self.engine.config.page_size
            self.tokens += sum(each.computed_len for each in running)
            self.requests += len(running)
            self.steps += 1

    @property
    def mean_live(self) -> float:
        return self.tokens / self.requests

    @property
    def waste(self) -> float:
        return 1 - self.tokens / self.slots


def measure(folder: Path, threads: int, requests: int) -> dict[str, Any]:
    engine = Engine.from_folder(folder, EngineConfig(max_running=32, threads=threads, dtype="bfloat16"))
    samples = Samples(engine)
    run(engine, _draw(requests, engine.model_config.vocab_size), samples.take)
    return {
        "kv_waste": round(samples.waste, 4),
        "page_size": engine.config.page_size,
        "mean_live_tokens": round(samples.mean_live, 1),
        "mean_running": round(samples.requests / samples.steps, 1),
        "steps": samples.steps,
    }


def _draw(requests: int, vocabulary: int) -> list[Request]:
    """Prompts of 104 to 200 tokens, so that requests end at different steps, no two pages alike."""
    draw = random.Random(0)
    shortest = MEAN_LIVE - OUTPUT
    prompts = [tokens(draw, draw.randint(shortest, MEAN_LIVE), vocabulary) for _ in range(requests)]
    return [greedy(f"w{at}", prompt, OUTPUT) for at, prompt in enumerate(prompts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--requests", type=int, default=128)
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, args.threads, args.requests)))


if __name__ == "__main__":
    main()
