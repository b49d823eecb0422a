"""GPTQ of the bench's half-billion model on this machine: time and memory, in a process of its own.

python -m bench.quantize [--json PATH] [--blocks N] [--samples N] [--length N] [--threads N] [--model FOLDER]

The model has random weights in bfloat16, and is made where FOLDER does not hold it; the calibration's tokens are random
too, for what they are changes neither time nor memory. `--blocks N` compresses the first N of its 24 blocks and says
what all would take, by what one of them takes and what is done once; the targets are held to that then.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from bench.engine_parts.contestants import ROOT
from bench.engine_parts.shapes import SHAPES, write
from bench.engine_parts.targets import Target
from bench.platform_parts.report import where

SHAPE: Final = SHAPES["llama-0.5b"]
GIB: Final = 2**30
TARGETS: Final = (Target("wall_seconds", "most", 15 * 60), Target("peak_gib", "most", 6.0))


def compress_here(model: Path, out: Path, samples: int, length: int, threads: int) -> None:
    """Compress, and print a line of JSON for each part and one at the end: the process that is measured."""
    import torch
    from penstock_compress import Recipe, compress

    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, SHAPE.vocabulary, (samples, length), generator=draw)
    begun, cpu = time.monotonic(), time.process_time()

    def report(done: int, of: int, what: str) -> None:
        say(done=done, of=of, what=what, wall_seconds=time.monotonic() - begun, cpu_seconds=time.process_time() - cpu)

    outcome = compress(model, out, Recipe("int4", "gptq", samples=samples, length=length), tokens, report)
    say(
        wall_seconds=time.monotonic() - begun,
        cpu_seconds=time.process_time() - cpu,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        bytes=outcome.bytes,
        source_bytes=outcome.source_bytes,
    )


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def measured(model: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the process told of its parts, and at its end."""
    with tempfile.TemporaryDirectory(prefix="penstock-quantize-") as folder:
        sizes = (arguments.samples, arguments.length, arguments.threads)
        command = [sys.executable, "-m", "bench.quantize", "--here", model, Path(folder) / "out", *sizes]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=environment, cwd=ROOT) as process:
            assert process.stdout is not None
            told = [json.loads(line) for line in progress(process.stdout)]
    if process.returncode:
        raise SystemExit(f"the process that compresses ended with {process.returncode}")
    *parts, end = told
    return parts, end


def progress(lines: Any) -> Iterator[bytes]:
    """The lines as they come, each on the terminal too."""
    for line in lines:
        print(line.decode().strip(), file=sys.stderr, flush=True)
        yield line


def figures(parts: list[dict[str, Any]], end: Mapping[str, Any], blocks: int) -> dict[str, Any]:
    """The whole model's: as measured, or of one block's share where only `blocks` of its own were compressed."""
    per_block = {key: (parts[-1][key] - parts[0][key]) / (len(parts) - 1) for key in ("wall_seconds", "cpu_seconds")}
    more = SHAPE.layers - blocks
    whole = {key: round(end[key] + more * each, 1) for key, each in per_block.items()}
    return {
        **whole,
        "peak_gib": round(end["peak_gib"], 2),
        "extrapolated": more > 0,
        "wall_seconds_per_block": round(per_block["wall_seconds"], 2),
        "cpu_seconds_per_block": round(per_block["cpu_seconds"], 2),
        "bytes_over_source": round(end["bytes"] / end["source_bytes"], 4),
    }


def model_in(folder: Path, blocks: int) -> Path:
    """The folder of the model's first blocks, made where it is not there."""
    model = folder / f"llama-0.5b-{blocks}"
    if not model.exists():
        write(replace(SHAPE, layers=blocks), model)
    return model


def main() -> int:
    if sys.argv[1:2] == ["--here"]:
        model, out, *sizes = sys.argv[2:]
        compress_here(Path(model), Path(out), *map(int, sizes))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "quantize.json")
    parser.add_argument("--blocks", type=int, default=SHAPE.layers, choices=range(1, SHAPE.layers + 1), metavar="N")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-shape-") as made:
        place = {**where(), "threads": arguments.threads}
        parts, end = measured(model_in(arguments.model or Path(made), arguments.blocks), arguments)
    values = figures(parts, end, arguments.blocks)
    targets = [{**asdict(each), "value": values[each.key], "met": each.met(values[each.key])} for each in TARGETS]
    plan = {"blocks": arguments.blocks, "samples": arguments.samples, "length": arguments.length}
    record = {"where": place, "plan": plan, "figures": values, "targets": targets, "parts": parts}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({"figures": values, "targets": targets}, indent=2))
    return 0 if all(each["met"] for each in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
