"""What a figure was measured on."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.engine_parts.contestants import ROOT

OURS = ("penstock", "torch", "transformers", "numpy")
PEERS = ("llama-cpp-python", "gguf", "numpy")


def where(threads: int, peers_python: Path) -> dict[str, object]:
    """Machine, versions and commit; call it before the measuring, for the load average."""
    return {
        **measured_on(OURS),
        "threads": threads,
        "peers_versions": _peers_versions(peers_python),
    }


def measured_on(packages: Sequence[str]) -> dict[str, object]:
    """The same of any bench: with the versions of `packages`."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def cpu_model() -> str:
    """By name, and the wide instructions that decide its speed here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = set(said.get("flags", "").split())
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if flag in known]
    return f"{said.get('model name', platform.machine())} ({', '.join(wide)})"


def _peers_versions(python: Path) -> dict[str, str] | None:
    """None where the peers are not installed."""
    if not python.exists():
        return None
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    said = subprocess.run([python, "-c", code, *PEERS], capture_output=True, text=True, check=True)
    return dict(zip(PEERS, said.stdout.split(), strict=True))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
