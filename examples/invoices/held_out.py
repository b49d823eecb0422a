"""Held-out invoices as a file to evaluate on: `python -m examples.invoices.held_out --count 1000 --out held-out.jsonl`.

Each line is a chat of one message, the invoice, and the answer that is right for it.
"""

import argparse
import json
from pathlib import Path

from examples.invoices.generator import draw_invoice
from examples.invoices.layouts import Split

SEED = 7_004


def write_held_out(file: Path, count: int, seed: int = SEED) -> None:
    """Write the first `count` held-out invoices of a stream, one JSON object on a line."""
    with file.open("w", encoding="utf-8") as lines:
        for index in range(count):
            invoice = draw_invoice(seed, index, Split.HELD_OUT)
            message = {"role": "user", "content": invoice.text}
            lines.write(json.dumps({"messages": [message], "expected": invoice.answer}) + "\n")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    write_held_out(options.out, options.count, options.seed)


if __name__ == "__main__":
    main()
