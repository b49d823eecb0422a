"""What the platform costs, beside its targets and beside what people write today, in one run.

python -m bench.platform [--json PATH] [--only PART,PART] [--quick]

    submits   jobs taken in a second by eight clients; from submit to the first event and token
    jobs      jobs done in a second, from submit to end
    streams   a thousand readers on one web process: memory, processors, and what the worker notices of them
    claims    claims in a second with 100 and with 100,000 jobs waiting
    tax       tokens in a second through REST over those of the engine alone: the demo model, and llama-0.5b
    peers     Flask, Celery, a Redis result backend and transformers' generate, on the same model and prompts
    lines     a batch of 50,000 lines: resident memory of web and control

Real services on this machine and real processes, each started for its part. In submits, jobs, streams and lines an
engine process that computes nothing answers the real worker (`bench.platform_parts.null_engine`), so that what is left
is the platform. Let nothing else run: it takes ten minutes. `--quick` takes tiny counts, and says nothing of speed.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.platform_parts import lines, peers, queues, report, streams, submits, tax
from bench.platform_parts.house import DEMO_MODEL, House, open_house, own_services

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much each part takes. `shape` None leaves out the model that takes a gigabyte."""

    counts: submits.Counts
    crowd: streams.Crowd
    waiting: int
    rounds: int  # of claims
    demo: tax.Load
    shape: tax.Load | None
    crowds: tuple[peers.Crowd, ...]
    lines: int
    lines_minutes: float = 4.0  # after which what is left of the lines is cancelled


WHOLE = Size(
    counts=submits.Counts(),
    crowd=streams.Crowd(),
    waiting=100_000,
    rounds=15,
    demo=tax.Load(jobs=192, output=64, slots=64, rounds=3),
    shape=tax.Load(jobs=16, output=48, slots=16, rounds=2),
    crowds=(peers.Crowd(1, 8), peers.Crowd(16, 2)),
    lines=50_000,
)
QUICK = Size(
    counts=submits.Counts(submits=16, clients=2, first_events=2, jobs=16, slots=4),
    crowd=streams.Crowd(readers=8, streaming=2, step_seconds=0.02, look_seconds=0.5),
    waiting=1000,
    rounds=2,
    demo=tax.Load(jobs=4, output=4, slots=4, rounds=1),
    shape=None,
    crowds=(peers.Crowd(1, 1), peers.Crowd(2, 1)),
    lines=20,
)


class Bench:
    """One run's size, and its parts, each with a PostgreSQL and a Redis of its own."""

    def __init__(self, size: Size, cache: Path) -> None:
        self._size = size
        self._cache = cache

    def run(self, only: tuple[str, ...], before: Mapping[str, Any]) -> dict[str, Any]:
        """The record: every part, those not asked for as they were, and on top the figures that have a target."""
        measured = {part: self._timed(part) for part in PARTS if part in only}
        found = {part: measured.get(part) or before.get(part) for part in PARTS}
        figures = report.figures(found)
        return {"figures": figures, "targets": report.verdicts(figures), **found}

    def _timed(self, name: str) -> dict[str, Any]:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        part: Callable[[], dict[str, Any]] = getattr(self, name)
        where, began = report.where(), time.perf_counter()
        found = plain(part())
        return {"where": where, "part_seconds": round(time.perf_counter() - began, 1), **found}

    def submits(self) -> dict[str, Any]:
        counts = self._size.counts
        with self.house() as house, house.front():
            one = told(submits.measure_submits(house, counts, 1))
            many = told(submits.measure_submits(house, counts, counts.clients))
            house.forget_jobs()
            with house.worker(*submits.worker(), worker_slots=counts.slots):
                answers = told(submits.measure_answers(house, counts))
        return {"one": one, "many": many, "answers": answers}

    def jobs(self) -> dict[str, Any]:
        with self.house() as house, house.front():
            return asdict(told(submits.measure_jobs(house, self._size.counts)))

    def streams(self) -> dict[str, Any]:
        with self.house(worker_drain_seconds=0.0) as house:
            return streams.measure_streams(house, self._size.crowd)

    def claims(self) -> dict[str, Any]:
        return asdict(queues.measure_claims(many=self._size.waiting, rounds=self._size.rounds))

    def tax(self) -> dict[str, Any]:
        with self.house() as house:
            found: dict[str, Any] = {"demo": told(tax.measure_tax(house, DEMO_MODEL, self._size.demo))}
        if self._size.shape is not None:
            folder = tax.shape_folder(self._cache)
            with self.house(model=folder) as house:
                found["shape"] = tax.measure_tax(house, folder, self._size.shape)
        return found

    def peers(self) -> dict[str, Any]:
        with self.house() as house:
            redis_url = house.settings.redis_url.get_secret_value()
            return peers.measure_peers(house, redis_url, self._size.crowds)

    def lines(self) -> dict[str, Any]:
        with self.house() as house, tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
            return lines.measure_lines(house, Path(folder), self._size.lines, self._size.lines_minutes)

    @contextmanager
    def house(self, model: Path = DEMO_MODEL, **settings: object) -> Iterator[House]:
        """A house over services of its own."""
        with own_services() as services, open_house(services, model, **settings) as house:
            yield house


PARTS = ("submits", "jobs", "streams", "claims", "tax", "peers", "lines")


def told(found: T) -> T:
    """The same, shown as soon as it is known."""
    print(f"  {found}", file=sys.stderr, flush=True)
    return found


def plain(found: Any) -> Any:
    """The same for JSON."""
    if is_dataclass(found) and not isinstance(found, type):
        return plain(asdict(found))
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return [plain(each) for each in found] if isinstance(found, (list, tuple)) else found


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="the record: parts that are not measured stay as they are there")
    parser.add_argument("--only", type=_parts, default=PARTS, help="parts, with commas between them")
    parser.add_argument("--lines-minutes", type=float, default=4.0, help="after which lines are cancelled")
    parser.add_argument("--quick", action="store_true", help="tiny counts: to see that it runs")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/penstock-bench")
    return parser.parse_args(words)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    return parts


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that no process is left behind
    size = replace(QUICK if args.quick else WHOLE, lines_minutes=args.lines_minutes)
    before = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    record = Bench(size, args.cache.absolute()).run(args.only, before)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(report.lines(record)))


if __name__ == "__main__":
    main()
