"""Sample invoices for people and demos: `python -m examples.invoices.samples` writes them into samples/.

All are held out: their vendors and layouts never appear in training, and their seed is no other's.
"""

from pathlib import Path

from examples.invoices.generator import Invoice, draw_invoice
from examples.invoices.layouts import Split

SAMPLES_SEED = 7_003
SAMPLE_COUNT = 16
FOLDER = Path(__file__).parent / "samples"


def draw_samples() -> list[Invoice]:
    """Return the sample invoices, the first `SAMPLE_COUNT` of their stream."""
    return [draw_invoice(SAMPLES_SEED, index, Split.HELD_OUT) for index in range(SAMPLE_COUNT)]


def write_samples(folder: Path = FOLDER) -> None:
    """Write each sample as NN.txt (the invoice) and NN.json (the right answer)."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, invoice in enumerate(draw_samples(), start=1):
        (folder / f"{index:02d}.txt").write_text(invoice.text + "\n", encoding="utf-8")
        (folder / f"{index:02d}.json").write_text(invoice.answer + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_samples()
