"""The smaller versions of the invoice model that are held against it, and how each is made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from penstock_compress import Recipe, compress
from penstock_compress.recipe import Method
from tokenizers import Tokenizer
from torch import Tensor

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.generator import draw_invoice
from examples.invoices.qat import RECIPE as QAT_RECIPE
from examples.invoices.qat import train_rounded
from examples.invoices.tokenizer import ASSISTANT, END, USER

GROUP: Final = 64  # the rows have 128 and 384 numbers
SAMPLES, LENGTH = 64, 256  # of the calibration
CALIBRATION_SEED: Final = 7_010
BASE: Final = Recipe("int4", group=GROUP, samples=SAMPLES, length=LENGTH)


@dataclass(frozen=True)
class Contestant:
    """One smaller version. `train`: it is trained to bear its rounding, rather than only rounded."""

    method: str
    recipe: Recipe
    train: bool = False

    @property
    def name(self) -> str:
        return f"{self.recipe.scheme} {self.method}"

    def make(self, folder: Path) -> Path:
        """Its checkpoint, in a folder of its name."""
        target = folder / self.name.replace(" ", "-")
        if self.train:
            return train_rounded(target).folder
        return compress(MODEL_FOLDER, target, self.recipe, calibration()).folder


def of(scheme: str, method: Method = "rtn", *, searched: bool = False) -> Contestant:
    recipe = replace(BASE, scheme=scheme, method=method, searched=searched)
    return Contestant(method + (" searched" if searched else ""), recipe)


def mixed(target: str) -> Contestant:
    """Bits where they are missed most, and GPTQ."""
    return Contestant(f"gptq {target}", replace(BASE, scheme="mixed", method="gptq", target_bytes=target))


CONTESTANTS: Final = (
    of("int8"),
    of("int8", "smoothquant"),
    of("int8-weights"),
    of("fp8"),
    of("fp8-tensor"),
    of("fp8-block"),
    of("int4"),
    of("int4", "awq"),
    of("int4", "gptq"),
    of("int4-asym"),
    of("int4-asym", "gptq"),
    of("int3"),
    of("int3", "gptq"),
    of("int3", "gptq", searched=True),
    Contestant("qat", QAT_RECIPE, train=True),
    mixed("34%"),
    mixed("40%"),
)


def calibration() -> Tensor:
    """Training invoices with their answers, as int64 [SAMPLES, LENGTH]."""
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    ids: list[int] = []
    index = 0
    while len(ids) < SAMPLES * LENGTH:
        invoice = draw_invoice(CALIBRATION_SEED, index)
        ids += tokenizer.encode(f"{USER}{invoice.text}{ASSISTANT}{invoice.answer}{END}").ids
        index += 1
    return torch.tensor(ids[: SAMPLES * LENGTH]).view(SAMPLES, LENGTH)
