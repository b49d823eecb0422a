"""A contestant: Penstock's engine, set up as it serves, greedy.

python -m bench.engine_parts.own FOLDER --threads N --sequences N --context N [--quantization int8|int4|fp8]
    [--kv-dtype int8|fp8]
"""

import argparse
from pathlib import Path
from typing import get_args

from penstock_engine import Engine, EngineConfig, InvalidConfig, StepOutput
from penstock_engine.config import KVDType, Quantization

from bench.engine_parts.loads import requests_of, run
from bench.engine_parts.protocol import CannotRun, Load, Measured, Ready, serve


def start(
    folder: Path,
    threads: int,
    quantization: Quantization | None,
    sequences: int,
    context: int,
    kv_dtype: KVDType = "auto",
) -> Ready:
    """Load the engine, with KV pages for `sequences` of `context` tokens. Raises CannotRun."""
    pages = sequences * (-(-context // EngineConfig().page_size) + 1)
    config = EngineConfig(
        max_running=sequences,
        kv_pages=pages,
        threads=threads,
        dtype="bfloat16",
        quantization=quantization,
        kv_dtype=kv_dtype,
    )
    try:
        engine = Engine.from_folder(folder, config)
    except InvalidConfig as refusal:
        if quantization is None and kv_dtype == "auto":
            raise
        raise CannotRun(str(refusal)) from refusal
    return Ready(lambda load: measure(engine, load), about=dict(engine.kernels))


def measure(engine: Engine, load: Load) -> Measured:
    """Submit all at once, and step until the last has ended."""
    first_tokens: dict[str, int] = {}

    def look(output: StepOutput) -> None:
        first_tokens.update((delta.request_id, delta.token_id) for delta in output.deltas if delta.position == 0)

    requests = requests_of(load, engine.model_config.vocab_size)
    done = run(engine, requests, look)
    assert engine.stats().preemptions == 0, "the pool is too small for the load"
    return Measured(done.seconds, done.decode_steps, [first_tokens[each.id] for each in requests])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--quantization", choices=get_args(Quantization))
    parser.add_argument("--kv-dtype", choices=get_args(KVDType), default="auto")
    args = parser.parse_args()
    serve(lambda: start(args.folder, args.threads, args.quantization, args.sequences, args.context, args.kv_dtype))


if __name__ == "__main__":
    main()
