"""The engine, its kernels and its peers on one GPU, in nine minutes: `make gpu-bench`.

python -m bench.gpu [--out FOLDER] [--shape NAME] [--quick] [--dry-run] [--only PART,PART] [--seconds N]

    ceilings                                          what this GPU copies, reads and multiplies
    bf16, int4, int8, fp8, bf16-kv-fp8, fp8-kv-fp8    our engine in each precision: decoding by batch, prefill, and
                                                      how much of a step is not the GPU's
    generate, compiled, generate_batch                transformers on the same shape
    attention                                         ours, SDPA and flex_attention
    kernels                                           every kernel beside torch and cuBLAS

A Llama-3.1-8B of random weights, made on the GPU, is measured. Each part is a process of its own with a limit of time;
what one could not reach is listed as not measured, and the command ends with 1. `--quick` measures a small shape, on
any CUDA device; `--dry-run` goes through everything once on a CPU, and its figures mean nothing. FOLDER gets gpu.json
and gpu-bench.log, the output of all parts.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit(f"gpu-bench needs a CUDA device and torch, which {sys.executable} has not; name another with PYTHON=")

from bench.gpu_parts.job import read_rows
from bench.gpu_parts.parts import Outcome, Part, keep, run_parts, table
from bench.gpu_parts.report import DATASHEET, lines, missing, parts_record, verdicts, with_rooflines
from bench.gpu_parts.shapes import SHAPES, Plan
from bench.kernels import ROOT, machine

# Part: (module, its own arguments, most seconds). In this order: what matters most is measured first.
PARTS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "ceilings": ("ceilings", (), 40),
    "bf16": ("own", ("--precision=bf16",), 140),
    "int4": ("own", ("--precision=int4",), 90),
    "generate": ("peers", ("--way=generate",), 70),
    "fp8-kv-fp8": ("own", ("--precision=fp8-kv-fp8",), 90),
    "attention": ("attention", (), 60),
    "generate_batch": ("peers", ("--way=generate_batch",), 70),
    "fp8": ("own", ("--precision=fp8",), 80),
    "int8": ("own", ("--precision=int8",), 80),
    "bf16-kv-fp8": ("own", ("--precision=bf16-kv-fp8",), 80),
    "kernels": ("each_kernel", (), 150),
    "compiled": ("peers", ("--way=compiled",), 100),
}
SECONDS = 520.0


def parts_of(names: Sequence[str], shape: str, device: str, folder: Path) -> list[Part]:
    """The command of each part. Triton interprets its kernels where there is no GPU."""
    before = () if device == "cuda" else ("env", "TRITON_INTERPRET=1", "OMP_NUM_THREADS=1")
    parts = []
    for name in names:
        module, own, limit = PARTS[name]
        common = (f"--shape={shape}", f"--device={device}", f"--rows={rows_file(folder, name)}")
        command = (*before, sys.executable, "-u", "-m", f"bench.gpu_parts.{module}", *common, *own)
        parts.append(Part(name, command, limit))
    return parts


def rows_file(folder: Path, part: str) -> Path:
    return folder / f"{part}.jsonl"


def expected(names: Sequence[str], plan: Plan) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """(part, (who, batch) of each figure of decoding that it owes)."""
    for name in names:
        module, _, _ = PARTS[name]
        if module == "own":
            yield name, [(f"penstock {name}", batch) for batch in plan.batches]
        elif module == "peers":
            batches = plan.batches if name == "generate_batch" else plan.peer_batches
            yield name, [(f"transformers {name}", batch) for batch in batches]


def record_of(outcomes: Sequence[Outcome], folder: Path, shape: str, names: Sequence[str]) -> dict[str, Any]:
    """Everything, as it is written."""
    on = machine()
    rows = [row for name in names for row in read_rows(rows_file(folder, name))]
    rows = with_rooflines(rows, DATASHEET.get(on["gpu"] or ""))
    lacking = missing(rows, dict(expected(names, SHAPES[shape].plan)))
    lacking += [f"{each.name}: {each.how}" for each in outcomes if each.bad]
    goals = verdicts(rows, on["gpu"], shape)
    return {
        "on": on,
        "shape": shape,
        "goals": goals,
        "not_measured": lacking,
        "parts": parts_record(outcomes),
        "rows": rows,
    }


def run(names: Sequence[str], shape: str, device: str, out: Path, seconds: float) -> int:
    """Measure, write and print; the exit status. The record is written anew after each part."""
    log, outcomes = out / "gpu-bench.log", list[Outcome]()
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def told(outcome: Outcome) -> None:
            print(f"{outcome.name}: {outcome.how} after {outcome.seconds:.0f} s", flush=True)
            keep(outcome, log)
            outcomes.append(outcome)
            (out / "gpu.json").write_text(json.dumps(record_of(outcomes, folder, shape, names), indent=1) + "\n")

        run_parts(parts_of(names, shape, device, folder), folder, seconds=seconds, at_once=1, told=told)
        record = record_of(outcomes, folder, shape, names)
    print("", *table(outcomes), "", *lines(record), sep="\n")
    return int(any(each.bad for each in outcomes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--quick", action="store_true", help="the shape `quick`")
    parser.add_argument("--dry-run", action="store_true", help="the shape `dry`, on the CPU")
    parser.add_argument("--only", type=_parts, default=tuple(PARTS), help="parts, with commas between them")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    named = text.split(",")
    if unknown := set(named) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def main() -> int:
    options = parse()
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu-bench needs a CUDA device, and torch sees none here; --dry-run needs none", file=sys.stderr)
        return 1
    shape = "dry" if options.dry_run else "quick" if options.quick else options.shape
    return run(options.only, shape, "cpu" if options.dry_run else "cuda", options.out, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
