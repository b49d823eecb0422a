"""How the loops around the micro-kernels are compiled: by numba, once per machine, into a cache on disk.

Numba notices a change of the file that a function is in, and of none that it uses: the cache therefore lies in a folder
named after the contents of this whole package.
"""

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba

HERE = Path(__file__).parent


def compiled(function: Callable[..., None]) -> Any:
    """`function`, without Python: it holds no lock while it runs, and its `prange` loops are shared among threads."""
    return _cached(function, parallel=True)


def part(function: Callable[..., Any]) -> Any:
    """As `compiled`, without loops of its own to share."""
    return _cached(function, parallel=False)


def _cached(function: Callable[..., Any], parallel: bool) -> Any:
    numba.config.THREADING_LAYER = "omp"  # torch's own threads, where torch was loaded first
    folder = _cache_folder()
    numba.config.CACHE_DIR = str(folder) if folder else ""
    return numba.njit(nogil=True, parallel=parallel, error_model="numpy", cache=folder is not None)(function)


@lru_cache(1)
def _cache_folder() -> Path | None:
    """Beside this package, or under the user's own; None where neither can be written: then each process compiles."""
    sources = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    name = f"kernels-{hashlib.sha256(sources).hexdigest()[:16]}"
    for parent in (HERE / "__pycache__", Path.home() / ".cache" / "penstock"):
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            return parent / name
    return None
