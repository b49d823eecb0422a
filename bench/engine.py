"""The engine beside its peers, and against its own targets, in one run.

python -m bench.engine [--json PATH] [--only PART,PART] [--model FOLDER] [--peers-python PATH]
python -m bench.engine --scheme NAME,NAME [--json PATH] [--model FOLDER]

    decode     our engine in bf16, int8 and int4, transformers' generate and generate_batch, llama.cpp in bf16, q8_0
               and q4_0: the same loads on the same weights, in turn; and the memory that each holds
    policies   a ragged trace let in continuously, a batch at a time, one at a time
    prefix     64 jobs that share 1,000 tokens: tokens computed over the fewest possible
    waste      slots of the KV pool that are held and empty
    overhead   what of a step at batch 32 is not the model's

Decoding is measured on the bench shape (llama-0.5b, random weights) and on the demo model, or on FOLDER alone. Models
are made and converted once, in --cache. llama.cpp runs in an environment of its own (`make bench-peers`); where that
is missing its rows say so and its ratios are null. Let nothing else run: it takes about a quarter of an hour.

With --scheme our engine in these formats (int8, int4, fp8, int4-asym, int3, fp8-block, kv-int8, ...: see
`bench.engine_parts.schemes`) is measured beside itself in bfloat16, at batch 1 and 32, and nothing else is.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.engine_parts import contestants, schemes
from bench.engine_parts.contestants import ROOT, Contestant, Room, run_json
from bench.engine_parts.decode import Plan, race
from bench.engine_parts.report import lines, race_record
from bench.engine_parts.targets import TARGETS, speed_ratios, verdicts
from bench.engine_parts.where import where

BENCH_SHAPE, SMALL_SHAPE, HOLLOW_SHAPE = "llama-0.5b", "llama-40m", "llama-0.5b-hollow"
DEMO_MODEL = ROOT / "examples" / "invoices" / "model"
PARTS = ("decode", "policies", "prefix", "waste", "overhead")


class Bench:
    """One run's settings, and its parts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._plan = Plan(args.batches, args.prompt, args.output, args.rounds)

    def run(self) -> dict[str, Any]:
        """The record: the parts asked for, and on top every figure that is a target."""
        record: dict[str, Any] = {"where": where(self._args.threads, self._args.peers_python)}
        parts: dict[str, Callable[[], Any]] = {part: getattr(self, part) for part in PARTS}
        found = {name: part() if name in self._args.only else {} for name, part in parts.items()}
        figures = self._figures(found)
        return {**record, **figures, "targets": verdicts(figures), **found}

    def decode(self) -> dict[str, Any]:
        """Races by model; of the demo model in bf16 alone."""
        if self._args.model:
            return {str(self._args.model): self._race(self._args.model.absolute(), lambda _: True)}
        limits = self._part("limits", BENCH_SHAPE, "--batches", *self._args.batches)
        return {
            BENCH_SHAPE: {**self._race(self._folder(BENCH_SHAPE), lambda _: True), "limits": limits},
            "invoices": self._race(DEMO_MODEL, lambda each: not each.rough),
        }

    def schemes(self) -> dict[str, Any]:
        """The record of a race of formats."""
        folder = self._args.model.absolute() if self._args.model else self._folder(BENCH_SHAPE)
        plan = replace(self._plan, batches=schemes.BATCHES)
        found = schemes.measure(folder, self._args.scheme, plan, self._args.threads, self._args.cache)
        told = where(self._args.threads, self._args.peers_python)
        return {"where": told, "targets": found["targets"], "decode": {folder.name: found["race"]}}

    def policies(self) -> Any:
        rounds = ["--requests", self._args.requests, "--rounds", self._args.rounds]
        return self._part("policies", self._folder(SMALL_SHAPE), *rounds)

    def prefix(self) -> Any:
        return self._part("prefix", self._folder(SMALL_SHAPE))

    def waste(self) -> Any:
        return self._part("waste", self._folder(SMALL_SHAPE))

    def overhead(self) -> Any:
        return self._part("overhead", self._folder(BENCH_SHAPE), self._folder(HOLLOW_SHAPE))

    def _race(self, folder: Path, admitted: Callable[[Contestant], bool]) -> dict[str, Any]:
        plan = self._plan
        room = Room(self._args.threads, sequences=max(plan.batches), context=plan.prompt + plan.output)
        everybody = [
            *contestants.own(folder, room),
            *contestants.transformers(folder, room),
            *contestants.llama_cpp(folder, room, self._args.peers_python, self._args.cache),
        ]
        done = race([each for each in everybody if admitted(each)], plan)
        return race_record(done, plan, speed_ratios(done.rows))

    def _part(self, name: str, *arguments: object) -> Any:
        print(f"measuring {name}", file=sys.stderr)
        return run_json(f"bench.engine_parts.{name}", [*arguments, "--threads", self._args.threads])

    def _folder(self, shape: str) -> Path:
        """The model of a shape, made if it is not there."""
        folder: Path = self._args.cache / shape
        if not folder.exists():
            print(f"writing {folder}", file=sys.stderr)
            run_json("bench.engine_parts.shapes", [shape, folder])
        return folder

    @staticmethod
    def _figures(found: dict[str, Any]) -> dict[str, float | None]:
        """Ratios on the bench shape, and every target's figure; None where it was not measured."""
        ratios = found["decode"].get(BENCH_SHAPE, {"ratios": speed_ratios([])})["ratios"]
        others = {key: value for part in PARTS[1:] for key, value in found[part].items()}
        return {**ratios, **{each.key: (ratios | others).get(each.key) for each in TARGETS}}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument("--only", type=_parts, default=PARTS, help="parts, with commas between them")
    parser.add_argument("--model", type=Path, help="a Llama folder to decode with, in place of the two")
    parser.add_argument("--scheme", type=_schemes, help="formats to measure beside bfloat16, with commas between them")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers/bin/python")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/penstock-bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=256, help="of the ragged trace")
    args = parser.parse_args()
    # Not `resolve`: an environment's python is a link, and what it links to is another environment.
    args.cache, args.peers_python = args.cache.absolute(), args.peers_python.absolute()
    args.cache.mkdir(parents=True, exist_ok=True)
    return args


def _parts(text: str) -> tuple[str, ...]:
    return _names(text, "part", PARTS)


def _schemes(text: str) -> tuple[str, ...]:
    return _names(text, "scheme", schemes.SCHEMES)


def _names(text: str, kind: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"no {kind} {min(unknown)!r}; there are {', '.join(known)}")
    return names


def main() -> None:
    args = parse()
    bench = Bench(args)
    record = bench.schemes() if args.scheme else bench.run()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines(record)))


if __name__ == "__main__":
    main()
