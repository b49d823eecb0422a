"""Training batches: invoices as token ids, grouped by length, each a pure function of (seed, block, level).

A prompt takes one of the forms that the job platform sends: a
chat with or without a system message, or bare text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.invoices import vocabulary as words
from examples.invoices.generator import Difficulty, Invoice, draw_invoice
from examples.invoices.layouts import Split
from examples.invoices.tokenizer import ASSISTANT, END, SYSTEM, USER

IGNORED = -100
"""The label of a position that carries no loss."""

CURRICULUM = (
    Difficulty(fields=1, distractors=(0, 1)),
    Difficulty(fields=2, distractors=(0, 2)),
    Difficulty(fields=3, distractors=(1, 3)),
    Difficulty(fields=4, distractors=(2, 4)),
    Difficulty(fields=5, distractors=(2, 6)),
)
BATCHES_PER_BLOCK = 16


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids [batch, length] and, in the same shape, the label of each next token."""

    ids: Tensor
    labels: Tensor


def prompt_of(invoice: Invoice, rng: Random) -> str:
    """Wrap an invoice as one of the requests that the model must understand."""
    if rng.random() < 0.15:
        return invoice.text + rng.choice(("", "\n", "\n\n"))
    text = (
        f"{rng.choice(words.REQUESTS)}{rng.choice(' ' + chr(10))}{invoice.text}" if rng.random() < 0.1 else invoice.text
    )
    system = SYSTEM + rng.choice(words.SYSTEM_PROMPTS) if rng.random() < 0.15 else ""
    return f"{system}{USER}{text}{ASSISTANT}"


def draw_block(tokenizer: Tokenizer, seed: int, block: int, level: int, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of one block in an order of its own; invoices of like length share a batch."""
    size = batch_size * BATCHES_PER_BLOCK
    rng = Random(f"block/{seed}/{block}/{level}")
    invoices = [draw_invoice(seed, block * size + i, Split.TRAIN, CURRICULUM[level]) for i in range(size)]
    prompts = tokenizer.encode_batch([prompt_of(invoice, rng) for invoice in invoices])
    answers = tokenizer.encode_batch([invoice.answer + END for invoice in invoices])
    pairs = sorted(
        ((p.ids, a.ids) for p, a in zip(prompts, answers, strict=True)),
        key=lambda pair: len(pair[0] + pair[1]),
    )
    batches = [pairs[i : i + batch_size] for i in range(0, size, batch_size)]
    rng.shuffle(batches)
    return (collate(batch) for batch in batches)


def collate(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    """Pad (prompt ids, answer ids) on the right; only the answer's tokens carry a label.

    Padding needs no mask: attention is causal, so no answer ever sees what stands behind it.
    """
    length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    labels = torch.full((len(pairs), length), IGNORED, dtype=torch.long)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer) - 1
        ids[row, :end] = torch.tensor((prompt + answer)[:-1])
        labels[row, len(prompt) - 1 : end] = torch.tensor(answer)
    return Batch(ids, labels)
