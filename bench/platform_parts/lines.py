"""What a batch of 50,000 lines takes in memory and time, with every line run to its end."""

import time
from pathlib import Path
from typing import Any

from penstock import Client

from bench import batches
from bench.platform_parts.house import House, null_worker

SLOTS = 64


def measure_lines(house: House, folder: Path, lines: int, minutes: float) -> dict[str, Any]:
    """Peaks by process; lines that did not fit in the minutes are cancelled, and told."""
    source, target = folder / "lines.jsonl", folder / "answers.jsonl"
    batches.write_input(source, lines)
    with house.front(), house.worker(*null_worker(0.005), worker_slots=SLOTS):
        memory = batches.Memory({kind: house.processes[kind] for kind in ("web", "control")})
        with memory.looking(), Client(f"http://127.0.0.1:{house.port}", house.key) as client:
            began = time.perf_counter()
            done = batches.measure(client, memory, source, target, minutes)
            seconds = time.perf_counter() - began
    assert target.read_bytes().count(b"\n") == done.lines.total == lines, "not every line has an answer"
    return {
        "lines": done.lines.model_dump(),
        "input_bytes": source.stat().st_size,
        "seconds": memory.seconds,
        "lines_per_second": round(done.lines.succeeded / seconds, 1),
        "peak_mebibytes": memory.peaks,
        "web_mebibytes": max(peaks["web"] for peaks in memory.peaks.values()),
        "control_mebibytes": max(peaks["control"] for peaks in memory.peaks.values()),
    }
