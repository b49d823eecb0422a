"""All that is checked on a GPU, in one command: `make gpu-check`.

python -m tests.gpu.check [--log FILE] [--seconds N] [--only NAME] [--seed N]

Each file of tests beside this is a process of its own, and so is each tool of compute-sanitizer, where that is
installed: memcheck over every kernel, racecheck over the attention that splits a context. One that fails stops no
other. The table of all is printed last; their whole output is in FILE. Ends with 1 where something failed, or
where there is no GPU.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    sys.exit(f"gpu-check needs a CUDA device and torch, which {sys.executable} has not; name another with PYTHON=")

from bench.gpu_parts.parts import Outcome, Part, keep, run_parts, table

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "bench" / "results"
# The project's own options are for its whole suite and the versions that it is tested with: plugins, a time for each
# test, a cache of the last run, and warnings as errors.
ANEW = ("addopts=", "timeout=", "filterwarnings=")
PYTEST = (
    *("-m", "pytest", "-q", "--confcutdir=tests/gpu", "-p", "no:cacheprovider"),
    *(word for option in ANEW for word in ("-o", option)),
)
LIMIT = 420.0  # seconds: of one file of tests, most of it the compiler's
SANITIZER_LIMIT = 240.0
AT_ONCE = 3  # compiling takes a core each, and the GPU is idle meanwhile
# An allocation of its own for each tensor: in torch's blocks a reach past one's end is a reach into another.
UNCACHED = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1")
SANITIZER = "compute-sanitizer"


def pytest_parts(seed: int) -> Iterator[Part]:
    for file in sorted(HERE.glob("test_*.py")):
        yield Part(file.stem, (sys.executable, *PYTEST, f"--gpu-seed={seed}", f"tests/gpu/{file.name}"), LIMIT)


def sanitizer_parts(tool: str | None) -> Iterator[Part]:
    """`tool` is the path of compute-sanitizer; None where it is not installed."""
    missing = "" if tool else f"{SANITIZER} is not installed here"
    for name, only in (("memcheck", ""), ("racecheck", "decode_attention")):
        watched = (sys.executable, "-m", "tests.gpu.every_kernel", f"--only={only}")
        options = ("--tool", name, "--error-exitcode", "99", "--print-limit", "20")
        yield Part(name, (*UNCACHED, tool or SANITIZER, *options, *watched), SANITIZER_LIMIT, absent=missing)


def check(parts: Sequence[Part], log: Path, seconds: float) -> int:
    """Run `parts` and print the table; the exit status."""
    log.unlink(missing_ok=True)

    def told(outcome: Outcome) -> None:
        print(f"{outcome.name}: {outcome.how} after {outcome.seconds:.0f} s", flush=True)
        keep(outcome, log)

    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_parts(parts, Path(folder), seconds=seconds, at_once=AT_ONCE, told=told)
        for failed in (each for each in outcomes if each.bad and each.log):
            print(f"\n--- {failed.name}, all of it in {log}", *_reasons(failed), sep="\n")
    print("", *table(outcomes), sep="\n")
    return int(any(each.bad for each in outcomes))


def _reasons(failed: Outcome, most: int = 8) -> list[str]:
    """The lines that say what failed, or else the last ones."""
    assert failed.log is not None
    lines = failed.log.read_text(errors="replace").splitlines()
    named = [line for line in lines if line.startswith(("FAILED", "ERROR", "========= Invalid", "========= Error"))]
    return [line[:180] for line in (named or lines)[-most:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=RESULTS / "gpu-check.log")
    parser.add_argument("--seconds", type=float, default=520.0, help="for all parts together")
    parser.add_argument("--only", default="", help="parts whose name holds this")
    parser.add_argument("--seed", type=int, help="draw the inputs that this seed drew before")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 1
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; inputs from --seed {seed}", flush=True)
    parts = [*pytest_parts(seed), *sanitizer_parts(shutil.which(SANITIZER))]
    return check([each for each in parts if options.only in each.name], options.log, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
