"""Our engine in the formats that it serves on a CPU, beside itself in bfloat16, in one run.

int8, int4, fp8       weights that the engine rounds as it loads them
int4-asym, int3, ...  a checkpoint of this scheme, which `penstock quantize` would make: see its SCHEMES
kv-int8, kv-fp8       weights in bfloat16, K and V in 8 bits
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.engine_parts.contestants import Contestant, Room, own, run_json
from bench.engine_parts.decode import Plan, Row, race
from bench.engine_parts.report import race_record
from bench.engine_parts.targets import OWN, SCHEME_TARGETS, over, verdicts

ROUNDED = ("int8", "int4", "fp8")
KEPT = ("kv-int8", "kv-fp8")
STORED = ("int4-asym", "int4-channel", "int3", "int3-asym", "fp8-block")
SCHEMES = (*ROUNDED, *STORED, *KEPT)
BATCHES = (1, 32)


def measure(folder: Path, names: Sequence[str], plan: Plan, threads: int, cache: Path) -> dict[str, Any]:
    """The race of `names` and bfloat16 over the model at `folder`; checkpoints are made once, in `cache`."""
    room = Room(threads, sequences=max(plan.batches), context=plan.prompt + plan.output)
    done = race([own(folder, room)[0], *(_contestant(name, folder, room, cache) for name in names)], plan)
    ratios = ratios_of(done.rows)
    return {"race": race_record(done, plan, ratios), "targets": verdicts(ratios, SCHEME_TARGETS)}


def ratios_of(rows: Iterable[Row]) -> dict[str, float | None]:
    """Tokens per second while decoding, over those in bfloat16 at the same batch."""
    rows = list(rows)
    plain = {row.batch: row.decode_tokens_per_s for row in rows if row.contestant == OWN}
    return {
        f"ratio_{row.contestant.removeprefix('penstock ')}_b{row.batch}": over(
            row.decode_tokens_per_s, plain[row.batch]
        )
        for row in rows
        if row.contestant != OWN
    }


def _contestant(name: str, folder: Path, room: Room, cache: Path) -> Contestant:
    plain = own(folder, room)[0].command
    if name in ROUNDED:
        command = (*plain, f"--quantization={name}")
    elif name in KEPT:
        command = (*plain, f"--kv-dtype={name.removeprefix('kv-')}")
    else:
        command = own(_stored(folder, name, cache), room)[0].command
    return Contestant(f"penstock {name}", command, rough=True)


def _stored(folder: Path, scheme: str, cache: Path) -> Path:
    """The checkpoint of `folder` in `scheme`, made if it is not there."""
    made = cache / f"{folder.name}-{scheme}"
    if not (made / "config.json").exists():
        run_json("bench.engine_parts.stored", [folder, scheme, made])
    return made
