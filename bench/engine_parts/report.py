"""The record of a run as a JSON document, and for reading."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from bench.engine_parts.decode import Plan, Race, Row

Record = Mapping[str, Any]


def race_record(race: Race, plan: Plan, ratios: Mapping[str, float | None]) -> dict[str, Any]:
    """Everything of a race: medians, and every round they are of."""
    return {
        "plan": asdict(plan),
        "rows": [row_record(row) for row in race.rows],
        "processes": {name: asdict(process) for name, process in race.processes.items()},
        "ratios": dict(ratios),
    }


def row_record(row: Row) -> dict[str, Any]:
    medians = {name: getattr(row, name) for name in ("tokens_per_s", "decode_tokens_per_s", "step_ms")}
    return {**asdict(row), **medians}


def lines(record: Record) -> Iterator[str]:
    """The whole record for a terminal."""
    where = record["where"]
    yield f"{where['cpu']}, {where['threads']} threads; commit {where['commit'][:12]}"
    for name, race in record["decode"].items():
        yield from _race(name, race)
    for part in ("policies", "prefix", "waste", "overhead"):
        if record.get(part):
            yield from ("", f"{part}:", *_tree(record[part], "  "))
    yield from _targets(record["targets"])


def _race(name: str, race: Record) -> Iterator[str]:
    plan = race["plan"]
    yield ""
    yield f"{name}: prompt {plan['prompt']}, output {plan['output']}; medians of {plan['rounds']} rounds"
    yield f"{'':28}{'batch':>6}{'decode tok/s':>14}{'step ms':>10}{'with prefill':>14}{'same 1st':>10}"
    for row in race["rows"]:
        if row["missing"]:
            yield f"{row['contestant']:28}{row['batch']:6}  {row['missing']}"
        else:
            rates = f"{_figure(row['decode_tokens_per_s'])}{_figure(row['step_ms'], 10)}{_figure(row['tokens_per_s'])}"
            yield f"{row['contestant']:28}{row['batch']:6}{rates}{row['same_first_tokens']:10.0%}"
    yield ""
    yield f"{'memory, MiB':28}{'loaded':>10}{'peak':>10}{'own share':>12}"
    for contestant, process in race["processes"].items():
        loaded, end = process["loaded"], process["end"]
        yield f"{contestant:28}{loaded['rss']:10}{end['peak']:10}{end['pss']:12}"
    yield ""
    for contestant, process in race["processes"].items():
        yield f"{contestant:28}{', '.join(f'{key}: {value}' for key, value in process['about'].items())}"
    yield ""
    yield from (f"{key:28}{_figure(value, 8, 2)}" for key, value in race["ratios"].items())
    yield from _limits(race) if "limits" in race else ()


def _limits(race: Record) -> Iterator[str]:
    """What our decoding reaches of what memory gives, and of what the products alone do."""
    ours = {(row["contestant"], row["batch"]): row["decode_tokens_per_s"] for row in race["rows"]}
    limits = race["limits"]
    yield ""
    yield f"limits at {limits['memory_read_gb_per_s']} GB/s{'':9}{'tok/s':>10}{'ours':>10}{'share':>8}"
    for kind, most in limits["memory_b1"].items():
        yield _limit(f"memory, {kind}, batch 1", most, ours.get((f"penstock {kind}", 1)))
    for batch, most in limits["linears"].items():
        yield _limit(f"products alone, batch {batch}", most, ours.get(("penstock bf16", int(batch))))


def _limit(name: str, most: float, reached: float | None) -> str:
    share = None if reached is None else reached / most
    return f"{name:28}{most:10.1f}{_figure(reached, 10)}{_figure(share, 8, 2)}"


def _figure(value: float | None, width: int = 14, digits: int = 1) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _tree(record: Record, indent: str) -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _tree(value, indent + "  ")
        else:
            yield f"{indent}{key:30}{round(value, 4) if isinstance(value, float) else value}"


def _targets(targets: list[Record]) -> Iterator[str]:
    yield ""
    yield f"{'target':32}{'measured':>10}{'bound':>10}"
    words = {True: "met", False: "MISSED", None: "not measured"}
    for each in targets:
        sign = "<=" if each["at"] == "most" else ">="
        yield f"{each['key']:32}{_figure(each['value'], 10, 3)}  {sign} {each['bound']:<7}{words[each['met']]}"
