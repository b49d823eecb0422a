"""A run's record: every row with its share of its own roofline, what was not measured, and a table for people."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.gpu_parts.parts import Outcome
from bench.gpu_parts.shapes import Cost

Row = dict[str, Any]
# Tokens per second of an 8B Llama decoding 1k contexts on one H200: what this engine is to reach there.
GOALS: Mapping[tuple[str, int], tuple[int, int]] = {
    ("penstock bf16", 1): (225, 250),
    ("penstock int4", 1): (400, 500),
    ("penstock bf16", 64): (9_000, 10_000),
    ("penstock bf16", 256): (15_000, 17_000),
    ("penstock fp8-kv-fp8", 256): (17_000, 20_000),
}
GOALS_ON, GOALS_OF = "NVIDIA H200", "llama-3.1-8b"
# Dense bfloat16 of the datasheet, which a "model FLOPs utilisation" is by convention a share of.
DATASHEET = {"NVIDIA H200": 989.4e12, "NVIDIA H100 80GB HBM3": 989.4e12}
MOST_KERNEL_LINES = 10


def with_rooflines(rows: Iterable[Row], datasheet: float | None) -> list[Row]:
    """Each row with `of_roofline`: the least time for its bytes and operations, at the ceilings measured, over its own.

    None where a ceiling is not known. A prefill has `mfu` too, of the `datasheet`'s rate.
    """
    everything = [dict(row) for row in rows]
    ceilings = next((row for row in everything if row["what"] == "ceilings"), None)
    for row in everything:
        if "seconds" in row and "moved" in row:
            row["of_roofline"] = _share(row, ceilings)
        if row["what"] == "prefill" and "seconds" in row:
            done = sum(row["flops"].values()) / row["seconds"]
            row["mfu"] = done / datasheet if datasheet else None
            row["flop_per_s"] = done
    return everything


def _share(row: Row, ceilings: Row | None) -> float | None:
    if ceilings is None or not set(row["flops"]) <= set(ceilings["matmul"]):
        return None
    floor = Cost(row["moved"], row["flops"]).floor(max(ceilings["copy"], ceilings["read"]), ceilings["matmul"])
    return floor / float(row["seconds"])


def verdicts(rows: Iterable[Row], gpu: str | None, shape: str) -> list[Row]:
    """Each goal with what was measured of it, None where nothing was; no goals elsewhere than where they are set."""
    if gpu != GOALS_ON or shape != GOALS_OF:
        return []
    speeds = {(row["who"], row["batch"]): row["tokens_per_s"] for row in rows if "tokens_per_s" in row}
    return [
        {"who": who, "batch": batch, "goal": goal, "stretch": stretch, "tokens_per_s": speeds.get((who, batch))}
        for (who, batch), (goal, stretch) in GOALS.items()
    ]


def missing(rows: Sequence[Row], expected: Mapping[str, Sequence[tuple[str, int]]]) -> list[str]:
    """What was to be decoded and was not, by part: (who, batch) of each."""
    there = {(row["who"], row["batch"]) for row in rows if row["what"] == "decode" and "tokens_per_s" in row}
    return [
        f"{part}: {who} at batch {batch}"
        for part, pairs in expected.items()
        for who, batch in pairs
        if (who, batch) not in there
    ]


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The record for a terminal."""
    on, rows = record["on"], record["rows"]
    yield f"{on['gpu'] or on['machine']}; torch {on['torch']}, triton {on['triton']}; {record['shape']}"
    for row in _of(rows, "ceilings"):
        rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in row["matmul"].items())
        memory = f"copy {row['copy'] / 1e12:.2f} TB/s, read {row['read'] / 1e12:.2f} TB/s"
        yield f"ceilings: {memory}; products, T/s: {rates}"
    yield from _decoding(rows)
    for row in _of(rows, "prefill"):
        mfu = f", MFU {row['mfu']:.0%}" if row["mfu"] else ""
        yield f"prefill {row['who']:<26} {row['tokens_per_s']:>9.0f} tok/s, {_percent(row)} of the roofline{mfu}"
    yield from _attention(rows)
    yield from _kernels(rows)
    for each in record["goals"]:
        got = "not measured" if each["tokens_per_s"] is None else f"{each['tokens_per_s']:.0f}"
        yield f"goal: {each['who']} at batch {each['batch']}: {got} of {each['goal']} (stretch {each['stretch']})"
    if record["not_measured"]:
        yield "not measured: " + "; ".join(record["not_measured"])


def _of(rows: Iterable[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]


def _percent(row: Row) -> str:
    return "  ?%" if row.get("of_roofline") is None else f"{row['of_roofline']:>4.0%}"


def _decoding(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each contestant: tokens per second, share of the roofline, and of a step that is not the GPU's."""
    found = _of(rows, "decode")
    batches = sorted({row["batch"] for row in found if "batch" in row})
    if not batches:
        return
    yield f"{'decode, tok/s':<28}" + "".join(f"{f'batch {batch}':>22}" for batch in batches)
    for who in dict.fromkeys(row["who"] for row in found):
        own = {row["batch"]: row for row in found if row["who"] == who and "tokens_per_s" in row}
        refused = next((row["missing"] for row in found if row["who"] == who and "missing" in row), "")
        yield f"{who:<28}" + "".join(f"{_cell(own.get(batch)):>22}" for batch in batches) + f"  {refused}"[:60].rstrip()


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    idle = "" if row.get("not_gpu") is None else f" idle{row['not_gpu']:>3.0%}"
    return f"{row['tokens_per_s']:.0f} {_percent(row)}{idle}"


def _attention(rows: Iterable[Row]) -> Iterator[str]:
    found = _of(rows, "attention")
    for size in dict.fromkeys((row["kernel"], row["size"]) for row in found):
        told = [
            f"{row['who']} {row['seconds'] * 1e6:.0f} us {_percent(row)}"
            for row in found
            if (row["kernel"], row["size"]) == size
        ]
        yield f"{size[0]}, {size[1]}: " + "; ".join(told)


def _kernels(rows: Iterable[Row]) -> Iterator[str]:
    """The furthest from their floors, of those whose inputs no cache holds; all are in the record."""
    found = _of(rows, "kernel")
    timed = [row for row in found if "us" in row]
    far = sorted((row for row in timed if row["cold"] and row["of_floor"]), key=lambda row: float(row["of_floor"]))
    if found:
        yield f"kernels measured: {len(timed)} of {len(found)}; furthest from their floors:"
    for row in far[:MOST_KERNEL_LINES]:
        rate = f"{row['bytes_per_s'] / 1e12:.2f} TB/s, {row['of_floor']:.0%} of its floor"
        yield f"  {row['kernel']:<20} {row['size']:<30} {row['us']:>8.1f} us  {rate}, {row['of_peer']:.2f}x peer"


def parts_record(outcomes: Iterable[Outcome]) -> list[Row]:
    return [
        {"part": each.name, "how": each.how, "seconds": round(each.seconds, 1), "said_last": each.note}
        for each in outcomes
    ]
