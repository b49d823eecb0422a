"""Every kernel, compiled for compute capability 9.0 on any machine, and measured where there is a GPU.

python -m bench.kernels --compile-only [--largest] [--json PATH]     what each takes of a multiprocessor; needs no GPU
python -m bench.kernels [--only NAME] [--json PATH]                  times beside torch and cuBLAS, and shares of what
                                                                     the GPU can do
python -m bench.kernels --tune [--only NAME] [--json PATH]           the fastest tiles, into the table of this GPU's
                                                                     name, the cache that launchers ask first, and PATH

`--largest` compiles, of each kernel and types, the largest tile alone, and of what takes bfloat16 nothing else.
`--json -` writes to standard output. Without a GPU, measuring ends with status 1, as it does where a kernel could not
be measured. A bandwidth with a star is of inputs that fit into the second-level cache.
"""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench" / "results" / "kernels.json"


def compile_cases() -> Iterator[tuple[str, Any]]:
    """(module, CompileCase) of every kernel, dtype and configuration that the engine launches."""
    from penstock_kernels import gpu

    for module in pkgutil.iter_modules(gpu.__path__):
        cases = getattr(importlib.import_module(f"penstock_kernels.gpu.{module.name}"), "compile_cases", None)
        for case in cases() if cases else ():
            yield module.name, case


def largest(cases: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Of each kernel and argument types, the case with the largest constants: what runs short of registers first.

    Kernels that take bfloat16 are compiled for it alone: it is what engines run, and the others are the same code.
    """
    every = list(cases)
    brain = {case.kernel.__name__ for _, case in every if _takes_bfloat16(case)}
    chosen: dict[tuple[str, str], tuple[str, Any]] = {}
    for module, case in every:
        if case.kernel.__name__ in brain and not _takes_bfloat16(case):
            continue
        key = case.kernel.__name__, str(sorted(case.signature.items()))
        if key not in chosen or _size(case) > _size(chosen[key][1]):
            chosen[key] = module, case
    return list(chosen.values())


def _takes_bfloat16(case: Any) -> bool:
    return any("bf16" in str(kind) for kind in case.signature.values())


def _size(case: Any) -> int:
    return sum(value for value in case.constexprs.values() if isinstance(value, int))


def compiled_rows(cases: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each case, as it is compiled; Triton keeps the machine code in its cache on disk."""
    from penstock_kernels.gpu.cases import SM90, resources

    for module, case in cases:
        used = resources(case.compile())
        yield {
            "module": module,
            "kernel": case.kernel.__name__,
            "label": case.label,
            "types": {name: kind for name, kind in case.signature.items() if name not in case.constexprs},
            "constants": {name: str(value) for name, value in case.constexprs.items()},
            "warps": case.num_warps,
            "stages": case.num_stages,
            "capability": SM90,
            **used._asdict(),
        }


def measured_rows(only: str, device: str = "cuda", sizes: Any = None) -> Iterator[dict[str, Any]]:
    """One row for each kernel and size whose name holds `only`, as it is measured; with `error` where that failed."""
    from bench.kernel_parts.contest import Sizes
    from bench.kernel_parts.timing import measure, measure_ceilings

    ceilings = measure_ceilings(device) if sizes is None else measure_ceilings(device, elements=1 << 16, side=64)
    yield {"kernel": "ceilings", **asdict(ceilings)}
    for case in measure_cases(sizes or Sizes(device=device)):
        if only not in case.kernel:
            continue
        try:
            yield measure(case, ceilings, device)
        except Exception as cause:  # whatever it is, the other kernels can still be measured
            yield {"kernel": case.kernel, "size": case.size, "error": f"{type(cause).__name__}: {cause}"}
        if device == "cuda":
            torch.cuda.empty_cache()


def tune(work: Any, gpu: str, only: str, files: list[Path]) -> None:
    """Measure the tiles of the kernels whose name holds `only`; every file is written anew as a class is done."""
    from penstock_kernels.gpu.tuning import Measured, write

    from bench.kernel_parts.sweep import measure_on, sweep, trials

    found: dict[tuple[str, str], Measured] = {}
    chosen = [trial for trial in trials(work) if only in trial.kernel]
    for (kernel, shapes), best in sweep(chosen, partial(measure_on, work)):
        found[kernel, shapes] = best
        gain = best.seconds_in_code / best.seconds
        print(f"{kernel:<18} {shapes:<28} {best.tile} {best.seconds * 1e6:.1f} us, {gain:.2f}x of in code", flush=True)
        for file in files:
            write(file, gpu, found)
        if work.device == "cuda":
            torch.cuda.empty_cache()
    print(*(f"written: {file}" for file in files), sep="\n")


def tune_here(only: str, copy: str | None) -> None:
    """The tables of the GPU at hand: that of this machine, that of its name, and a copy."""
    from penstock_kernels.gpu.tuning import CACHE, SHIPPED, cache_file, shipped_file

    from bench.kernel_parts.sweep import Workload

    gpu = torch.cuda.get_device_name()
    files = [cache_file(gpu, CACHE), shipped_file(gpu, SHIPPED), *([Path(copy)] if copy else [])]
    tune(Workload(), gpu, only, files)


def measure_cases(sizes: Any) -> list[Any]:
    """Everything that is measured, at `sizes`, what decides most first."""
    from bench.kernel_parts.elementwise import elementwise_cases
    from bench.kernel_parts.heavy import attention_cases, quantized_cases
    from bench.kernel_parts.thin import lora_cases, sampling_cases

    parts = (attention_cases, quantized_cases, elementwise_cases, sampling_cases, lora_cases)
    return [case for part in parts for case in part(sizes)]


def line_of(row: dict[str, Any]) -> str:
    """A row for people."""
    if "registers" in row:
        return (
            f"{row['label']:<72} shared {row['shared_bytes']:>7} B  registers {row['registers']:>3}"
            f"  stack {row['stack_bytes']:>4} B  spills {row['spill_instructions']:>4}"
        )
    if row["kernel"] == "ceilings":
        rates = ", ".join(f"{name} {rate / 1e12:.0f} T/s" for name, rate in row["matmul"].items())
        return f"copy {row['copy'] / 1e12:.2f} TB/s, read {row['read'] / 1e12:.2f} TB/s; products: {rates}"
    of_floor = f"{row['of_floor']:>4.0%} of its floor" if row.get("of_floor") else "floor not known"
    head = f"{row['kernel']:<26} {row['size']:<34}"
    if "error" in row:
        return f"{head} not measured: {row['error'].splitlines()[0]}"
    return (
        f"{head} {row['us']:>9.1f} us  {row['of_peer']:>6.2f}x peer  {row['bytes_per_s'] / 1e12:>5.2f} TB/s"
        f"{' ' if row['cold'] else '*'} {of_floor}"
    )


def machine() -> dict[str, Any]:
    """What a figure stands on."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """None in a copy that is no checkout, and where there is no git: a figure is worth having there too."""
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None


def write(path: str, rows: list[dict[str, Any]]) -> None:
    """JSON to `path`, or to standard output for `-`."""
    text = json.dumps({"on": machine(), "rows": rows}, indent=1)
    if path == "-":
        print(text)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n")


def report(rows: Iterator[dict[str, Any]], path: str | None) -> list[dict[str, Any]]:
    """Print each row as it comes, or beside the JSON where that takes standard output; then write them all."""
    lines = sys.stderr if path == "-" else sys.stdout
    done = []
    for row in rows:
        print(line_of(row), file=lines, flush=True)
        done.append(row)
    if path:
        write(path, done)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--compile-only", action="store_true", help="compile for sm_90 and list what each kernel takes")
    parser.add_argument(
        "--largest", action="store_true", help="compile the largest tile of each kernel and types alone"
    )
    parser.add_argument("--only", default="", metavar="NAME", help="measure kernels whose name holds this")
    parser.add_argument(
        "--json", metavar="PATH", help=f"- for standard output; measuring writes {RESULT.name} unless told"
    )
    parser.add_argument("--tune", action="store_true", help="measure tiles, and write the table of this GPU")
    options = parser.parse_args()
    if options.compile_only:
        cases = compile_cases()
        report(compiled_rows(largest(cases) if options.largest else cases), options.json)
        return 0
    if not torch.cuda.is_available():
        print("bench.kernels: no GPU here; --compile-only needs none", file=sys.stderr)
        return 1
    if options.tune:
        tune_here(options.only, options.json)
        return 0
    rows = report(measured_rows(options.only), options.json or str(RESULT))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
