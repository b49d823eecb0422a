"""The draft model: half the blocks and half the feed-forward channels of the invoice model, taught by it.

`python -m examples.invoices.draft` makes `draft/` again (killing it is safe: the same command goes on where it was);
`python -m examples.invoices.acceptance` says how much of what it proposes the model would take.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import torch
from penstock_compress.distilling import distil
from penstock_compress.pruning import Cut, prune
from penstock_compress.telling import Report, silent
from penstock_compress.training import Training
from rich.progress import Progress
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.lessons import calibration, prompts
from examples.invoices.model import export_model
from examples.invoices.qat import show

DRAFT_FOLDER = Path(__file__).parent / "draft"
RUN = Path(__file__).parent / "runs" / "draft"
CUT = Cut(keep_ffn=0.5, keep_layers=2)
TRAINING = Training(steps=800, batch=32, rate=3e-3)
CALIBRATION_SEED, WINDOWS = 12, 64
LESSONS_SEED, LESSONS = 13, 8_000


def make_draft(
    folder: Path, run: Path, training: Training = TRAINING, lessons: int = LESSONS, report: Report = silent
) -> None:
    """Prune, distil, and write the model folder to `folder`; what is done is kept in the folder `run`."""
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    prune(MODEL_FOLDER, run / "pruned", CUT, calibration(tokenizer, CALIBRATION_SEED, WINDOWS), report)
    asked = prompts(tokenizer, LESSONS_SEED, lessons)
    distil(run / "pruned", MODEL_FOLDER, run / "distilled", training, asked, report)
    model = LlamaForCausalLM.from_pretrained(run / "distilled", dtype=torch.bfloat16)
    model.config.name_or_path = ""  # a path of this machine
    export_model(model, tokenizer, folder)
    shutil.copy2(MODEL_FOLDER / "tokenizer.json", folder / "tokenizer.json")  # the very bytes


def main() -> None:
    """Parse the command line and make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DRAFT_FOLDER)
    parser.add_argument("--run", type=Path, default=RUN, help="the folder for what is not done yet")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with Progress() as progress:
        make_draft(options.out, options.run, report=partial(show, progress, progress.add_task("", total=None)))


if __name__ == "__main__":
    main()
