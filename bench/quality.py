"""What every scheme and method of compression costs in quality, beside its targets, in one run.

python -m bench.quality [--json PATH] [--picture PATH] [--invoices N] [--only NAME,NAME] [--quick]

Each smaller version of the invoice model is made anew, opened by the engine that serves it, and held against the model
in bf16 on the same held-out invoices: divergence of next-token distributions over the whole vocabulary, right answers,
answers that flipped, bytes beside what the format promises, and tokens a second of both in turns. Let nothing else run:
it takes a quarter of an hour. `--quick` takes few invoices, and means little.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench.quality_parts import report
from bench.quality_parts.contestants import CONTESTANTS, Contestant
from bench.quality_parts.measuring import Measured, measure

INVOICES, TEXTS = 4_000, 512
QUICK = 100


def main() -> int:
    """Parse the command line, measure, print; ends with 1 where a target is missed."""
    options = _options()
    began = time.perf_counter()
    record: dict[str, object] = {"where": report.where()}
    print(report.heading())
    with tempfile.TemporaryDirectory(prefix="penstock-quality-") as folder:
        found = _measured(_chosen(options.only), options.invoices, min(TEXTS, options.invoices), Path(folder))
    values = report.figures(found)
    targets = report.verdicts(values)
    record |= {"seconds": round(time.perf_counter() - began), **asdict(found), "figures": values, "targets": targets}
    print("\n" + "\n".join(report.lines(record)))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.picture:
        options.picture.write_text(report.draw(found), encoding="utf-8")
    return int(any(each["met"] is False for each in targets))


def _measured(contestants: list[Contestant], invoices: int, texts: int, folder: Path) -> Measured:
    for each in measure(contestants, invoices, texts, folder):
        if isinstance(each, Measured):
            return each
        print(report.line(each), flush=True)
    raise AssertionError("measuring ends with what was measured")


def _chosen(names: str | None) -> list[Contestant]:
    known = {each.name: each for each in CONTESTANTS}
    wanted = list(known) if names is None else names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--picture", type=Path, help="draw it there, as SVG")
    parser.add_argument("--invoices", type=int, default=INVOICES)
    parser.add_argument("--only", help="some of the versions, by name")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.invoices = QUICK
    return options


if __name__ == "__main__":
    sys.exit(main())
