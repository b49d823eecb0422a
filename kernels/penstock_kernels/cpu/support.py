"""Whether this machine runs the kernels, asked before any of them is imported."""

from importlib.util import find_spec
from pathlib import Path

NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512vbmi"}
PACKAGES = ("numba", "llvmlite")


def lacking(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """What is lacking here, in words; empty if nothing is."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        return f"the package {absent[0]} is not installed"
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return "this system does not tell its processor's instructions"
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    missing = sorted(NEEDED.difference(flags))
    return f"this processor has no {', '.join(missing)}" if missing else ""
