"""What of a decoding step is not the model's: scheduler, cache, laying out of the batch, bookkeeping.

python -m bench.engine_parts.overhead FOLDER HOLLOW_FOLDER --threads N

    step  = [ schedule | lay out | model | sample | commit | rest ]         Engine.step, from entry to return
    overhead_share = 1 - (model + sample) / step

`model` is the call of the model's forward pass and `sample` that of the sampler, both with the Python between their
tensor operations. How much that Python is, HOLLOW_FOLDER tells: a model of as many layers whose matrices are next to
nothing, so that its forward pass is little but calls. `overhead_share_with_calls` counts them as overhead too, which
is more than the truth, because the hollow model computes something as well.

Figures are medians over the steps in which all 32 decode.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from penstock_engine import Engine, EngineConfig, StepOutput, runner

from bench.engine_parts.loads import requests_of, run
from bench.engine_parts.protocol import Load

BATCH = 32
PARTS = ("schedule", "lay out", "model", "sample", "commit")


class Stopwatches:
    """Seconds of each part in each step, by wrapping the calls where the parts meet."""

    def __init__(self, engine: Engine) -> None:
        self._now = dict.fromkeys(PARTS, 0.0)
        self.steps: list[dict[str, float]] = []
        self._wrapped: list[tuple[Any, str, Callable[..., Any]]] = []
        self._wrap(engine._scheduler, "schedule", "schedule")
        self._wrap(engine._scheduler, "commit", "commit")
        self._wrap(runner, "lay_out", "lay out")
        self._wrap(runner, "build_forward_batch", "lay out")
        self._wrap(engine._runner._sampler, "choose", "sample")
        self._wrap(engine._runner._model, "forward", "model")
        self._wrap(engine, "step", "step")

    def take(self, output: StepOutput) -> None:
        """Keep the step that has just ended, if all decoded in it."""
        if output.counts.decoding == BATCH:
            self.steps.append(self._now.copy())
        self._now = dict.fromkeys(PARTS, 0.0)

    def median_ms(self, part: str) -> float:
        return round(median(each[part] for each in self.steps) * 1e3, 3)

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._now[part] = self._now.get(part, 0.0) + time.perf_counter() - start

        self._wrapped.append((owner, name, inner))
        setattr(owner, name, timed)

    def remove(self) -> None:
        for owner, name, inner in self._wrapped:
            setattr(owner, name, inner)


def measure(folder: Path, hollow: Path, threads: int) -> dict[str, Any]:
    watches, calls = _watch(folder, threads), _watch(hollow, threads)
    share = median(1 - (each["model"] + each["sample"]) / each["step"] for each in watches.steps)
    calls_ms = calls.median_ms("model")
    return {
        "batch": BATCH,
        "overhead_share": round(share, 4),
        "overhead_share_with_calls": round(share + calls_ms / watches.median_ms("step"), 4),
        "step_ms": watches.median_ms("step"),
        "parts_ms": {part: watches.median_ms(part) for part in PARTS},
        "calls_ms": calls_ms,
        "steps": len(watches.steps),
    }


def _watch(folder: Path, threads: int) -> Stopwatches:
    config = EngineConfig(max_running=BATCH, threads=threads, dtype="bfloat16", kv_pages=20 * BATCH)
    engine = Engine.from_folder(folder, config)
    watches = Stopwatches(engine)
    vocabulary = engine.model_config.vocab_size
    for load in (Load(BATCH, 64, 4, seed=-1), Load(BATCH, 64, 64)):
        watches.steps.clear()  # of the warm-up
        run(engine, requests_of(load, vocabulary), watches.take)
    watches.remove()
    return watches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("hollow", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, args.hollow, args.threads)))


if __name__ == "__main__":
    main()
