"""What each part is told, and where it leaves its figures: a line of JSON for each, at once.

A part that runs out of time has told what it had measured until then.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_parts.shapes import PRECISIONS, SHAPES, Cost, Precision, Shape

WAYS = ("generate", "compiled", "generate_batch")  # in which transformers decodes


@dataclass(frozen=True, slots=True)
class Job:
    """`precision` is that of the engine's parts, `way` that of the peers'."""

    shape: Shape
    device: str
    rows: Path
    precision: Precision = PRECISIONS["bf16"]
    way: str = "generate"

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def tell(self, what: str, who: str, **figures: object) -> None:
        """`what` was measured of `who`."""
        row = {"what": what, "who": who, **figures}
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{what}: {who}, {figures.get('size', figures.get('batch', ''))}".rstrip(", "), flush=True)


def costing(cost: Cost) -> dict[str, object]:
    """The least that something costs, as a row tells it."""
    return {"moved": cost.moved, "flops": dict(cost.flops)}


def job() -> Job:
    """Of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--way", choices=WAYS, default="generate")
    options = parser.parse_args()
    return Job(SHAPES[options.shape], options.device, options.rows, PRECISIONS[options.precision], options.way)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What a part told; the last line may have been cut off with it."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
