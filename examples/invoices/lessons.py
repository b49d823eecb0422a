"""Invoices as lessons for a student of the invoice model: prompts that the model itself answers, and text to prune by.

Always training's invoices: what is held out stays so for every student.
"""

import torch
from penstock_compress.lessons import Lesson
from tokenizers import Tokenizer
from torch import Tensor

from examples.invoices.generator import Invoice, draw_invoice
from examples.invoices.scoring import prompt_ids
from examples.invoices.tokenizer import END

WINDOW = 256
"""Tokens of a sequence of calibration."""


def prompts(tokenizer: Tokenizer, seed: int, count: int) -> list[Lesson]:
    """The first `count` invoices of a stream as chat prompts that wait for the teacher's answer."""
    asked = (prompt_ids(tokenizer, draw_invoice(seed, index)) for index in range(count))
    return [Lesson(tuple(ids), len(ids)) for ids in asked]


def answered(tokenizer: Tokenizer, invoice: Invoice) -> Lesson:
    """The invoice as a chat prompt with its right answer."""
    prompt = prompt_ids(tokenizer, invoice)
    return Lesson((*prompt, *tokenizer.encode(invoice.answer + END).ids), len(prompt))


def calibration(tokenizer: Tokenizer, seed: int, windows: int) -> Tensor:
    """Invoices with their answers, joined and cut: int64 [windows, WINDOW]."""
    ids: list[int] = []
    index = 0
    while len(ids) < windows * WINDOW:
        ids += answered(tokenizer, draw_invoice(seed, index)).ids
        index += 1
    return torch.tensor(ids[: windows * WINDOW]).view(windows, WINDOW)
