"""The invoice model at three bits, trained to bear it: `python -m examples.invoices.qat`.

Killing it is safe: the same command goes on where it was.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from penstock_compress import Recipe
from penstock_compress.compressing import Outcome
from penstock_compress.learning import line_of
from penstock_compress.qat import qat
from penstock_compress.telling import Report, silent
from penstock_compress.training import Training
from rich.progress import Progress, TaskID
from tokenizers import Tokenizer

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.lessons import prompts

OUT = Path(__file__).parent / "runs" / "qat-int3"
RECIPE = Recipe("int3", group=64, searched=True)
TRAINING = Training(steps=300, batch=16, rate=1e-3, prompts=True, most=128)
LESSONS_SEED, LESSONS = 11, 2_000


def train_rounded(
    out: Path = OUT, training: Training = TRAINING, lessons: int = LESSONS, report: Report = silent
) -> Outcome:
    """Write the trained int3 version of the invoice model to `out`; one that is there already is left as it is."""
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    return qat(MODEL_FOLDER, out, RECIPE, training, prompts(tokenizer, LESSONS_SEED, lessons), report)


def show(progress: Progress, task: TaskID, done: int, of: int, what: str) -> None:
    progress.update(task, completed=done, total=of, description=f"{what:16}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with Progress() as progress:
        outcome = train_rounded(options.out, report=partial(show, progress, progress.add_task("", total=None)))
    print(line_of(outcome))


if __name__ == "__main__":
    main()
