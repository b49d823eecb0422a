"""Tiles that were measured, on the very GPU or on one of its name: launchers ask here before they take what is in code.

    ~/.cache/penstock/tiles-<gpu>-triton<version>-<kernels>.json    measured on this machine, for these very kernels
    penstock_kernels/gpu/tuned/<gpu>.json                           measured by us, on a GPU of that name
    the tables in code                                              where neither is there

The first of these that is there and whole is used, and `Engine.kernels` tells which. `python -m bench.kernels --tune`
measures and writes. A table can choose only among `tile_candidates`, all of which are known to compile; one that names
anything else, or is of another GPU, is refused as a whole with a warning that names the file.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
import triton

from penstock_kernels.gpu.tile_candidates import CANDIDATES, Choice

FORMAT = 1
SHIPPED = Path(__file__).parent / "tuned"
CACHE = Path.home() / ".cache" / "penstock"
IN_CODE = "in code"

log = logging.getLogger(__name__)
Chosen = TypeVar("Chosen", bound=Choice)


class TableRefused(ValueError):
    """A table that cannot be used; the message says why, and what would be right."""


@dataclass(frozen=True, slots=True)
class Table:
    """Choices by kernel and class of shapes, and where they are from."""

    source: str
    choices: Mapping[tuple[str, str], Choice] = field(default_factory=lambda: MappingProxyType({}))


def tuned(kernel: str, shapes: str, in_code: Chosen, device: torch.device) -> Chosen:
    """What the table of `device` chooses for these shapes, or else `in_code`."""
    return cast(Chosen, table_of(device).choices.get((kernel, shapes), in_code))


@lru_cache
def table_of(device: torch.device) -> Table:
    """The table in use on `device`; looked for once."""
    if device.type != "cuda":
        return Table(IN_CODE)
    gpu = torch.cuda.get_device_name(device)
    return first_usable(gpu, [cache_file(gpu, CACHE), shipped_file(gpu, SHIPPED)])


def first_usable(gpu: str, files: list[Path]) -> Table:
    """Of the tables in `files` the first that is there and may be used on `gpu`."""
    for file in files:
        try:
            return read(file, gpu)
        except FileNotFoundError:
            continue
        except TableRefused as refusal:
            log.warning("tuning.refused: %s is not used: %s", file, refusal)
    return Table(IN_CODE)


def read(file: Path, gpu: str) -> Table:
    """A table of `gpu`. Raises FileNotFoundError, TableRefused."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise TableRefused(f"it is no JSON ({cause}); tune again") from cause
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise TableRefused(f"it is not of format {FORMAT}; tune again")
    if raw.get("gpu") != gpu:
        raise TableRefused(f"it was measured on {raw.get('gpu')!r}, and this is {gpu!r}; tune here")
    choices = raw.get("choices")
    if not isinstance(choices, dict) or not all(isinstance(each, dict) for each in choices.values()):
        raise TableRefused("it has no choices by kernel and shapes; tune again")
    found = {
        (kernel, shapes): _candidate(kernel, shapes, chosen)
        for kernel, by_shapes in choices.items()
        for shapes, chosen in by_shapes.items()
    }
    return Table(f"{file.name}, measured with Triton {raw.get('triton')}", MappingProxyType(found))


def _candidate(kernel: str, shapes: str, entry: Any) -> Choice:
    """The candidate that `entry` names. Raises TableRefused where there is none such."""
    wanted = entry.get("tile") if isinstance(entry, dict) else None
    for candidate in CANDIDATES.get((kernel, shapes), ()):
        if asdict(candidate) == wanted:
            return candidate
    raise TableRefused(f"{wanted} is no candidate for {kernel}, {shapes}; tune again")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sweep found for one class: seconds of the fastest candidate, and of what is in code."""

    tile: Choice
    seconds: float
    seconds_in_code: float


def write(file: Path, gpu: str, found: Mapping[tuple[str, str], Measured]) -> None:
    """Write a table, all at once or not at all."""
    choices: dict[str, dict[str, object]] = {}
    for (kernel, shapes), best in found.items():
        times = {"us": round(best.seconds * 1e6, 3), "us_in_code": round(best.seconds_in_code * 1e6, 3)}
        choices.setdefault(kernel, {})[shapes] = {"tile": asdict(best.tile), **times}
    table = {"format": FORMAT, "gpu": gpu, "triton": triton.__version__, "kernels": kernels_hash(), "choices": choices}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


def cache_file(gpu: str, folder: Path) -> Path:
    """Of this machine: another Triton, or a changed kernel, looks for another file."""
    return folder / f"tiles-{_slug(gpu)}-triton{triton.__version__}-{kernels_hash()}.json"


def shipped_file(gpu: str, folder: Path) -> Path:
    return folder / f"{_slug(gpu)}.json"


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@lru_cache
def kernels_hash() -> str:
    """Of the source of all kernels: what a measured time holds for."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
