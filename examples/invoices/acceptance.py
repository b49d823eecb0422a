"""How much of what a draft model proposes the invoice model would take: `python -m examples.invoices.acceptance`.

Both models read the invoice model's own answers to held-out invoices. At each token the proposal stands when it is the
model's first choice too (greedy decoding), or with the chance sum min(p, q) (sampling; Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding", 2022, arXiv 2211.17192). Of k proposals those before the first
that falls are accepted; expected numbers are means over every token at which a proposal could begin.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from penstock_compress.lessons import Answering, Lesson, answer
from penstock_compress.training import IGNORED, Batch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from examples.invoices.draft import DRAFT_FOLDER
from examples.invoices.evaluate import EVALUATION_SEED, MODEL_FOLDER, held_out_invoices
from examples.invoices.generator import Invoice
from examples.invoices.scoring import MAX_ANSWER_TOKENS, prompt_ids
from examples.invoices.tokenizer import CONTEXT_LENGTH

LONGEST = 5
"""Proposals in one draft, at most."""
TOGETHER = 32


@dataclass(frozen=True)
class Acceptance:
    """The mean chance that a proposal stands, and of 1 to LONGEST proposals the expected number that does."""

    mean: float
    expected: tuple[float, ...]
    tokens: int

    @classmethod
    def of(cls, chances: Sequence[Tensor]) -> "Acceptance":
        """From the chance of each token of each answer."""
        expected = torch.stack([expected_accepted(each) for each in chances])
        tokens = sum(len(each) for each in chances)
        return cls(float(torch.cat(list(chances)).mean()), tuple((expected.sum(0) / tokens).tolist()), tokens)


def expected_accepted(chances: Tensor) -> Tensor:
    """Summed over every place in an answer, how many of 1 .. LONGEST proposals made there stand, [LONGEST].

    `chances` [tokens]; behind the answer's end nothing stands.
    """
    standing = torch.ones_like(chances)
    padded = torch.cat([chances, chances.new_zeros(LONGEST)])
    each = []
    for ahead in range(LONGEST):
        standing = standing * padded[ahead : ahead + len(chances)]
        each.append(standing.sum())
    return torch.stack(each).cumsum(0)


def own_answers(folder: Path, invoices: Sequence[Invoice], temperature: float, seed: int = 0) -> list[Lesson]:
    """What the model in `folder` answers to the invoices, through the engine."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = [Lesson(tuple(ids), len(ids)) for ids in (prompt_ids(tokenizer, invoice) for invoice in invoices)]
    return answer(folder, asked, Answering(temperature, MAX_ANSWER_TOKENS, seed), CONTEXT_LENGTH)


@torch.inference_mode()
def chances(
    model: LlamaForCausalLM, draft: LlamaForCausalLM, answers: Sequence[Lesson], *, greedy: bool
) -> list[Tensor]:
    """The chance of each answer's tokens that the draft's proposal there stands, [tokens] for each answer."""
    found: list[Tensor] = []
    for begin in range(0, len(answers), TOGETHER):
        batch = Batch.of(answers[begin : begin + TOGETHER])
        wanted, said = (one(input_ids=batch.ids, use_cache=False).logits for one in (model, draft))
        if greedy:
            each = (wanted.argmax(-1) == said.argmax(-1)).float()
        else:
            each = torch.minimum(wanted.softmax(-1), said.softmax(-1)).sum(-1)
        found += [row[counts] for row, counts in zip(each, batch.targets != IGNORED, strict=True)]
    return found


def measure(
    invoices: Sequence[Invoice], model: Path = MODEL_FOLDER, draft: Path = DRAFT_FOLDER
) -> dict[str, Acceptance]:
    """Acceptance when decoding is greedy, and when it samples at temperature 1."""
    transformers_logging.disable_progress_bar()
    both = [LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (model, draft)]
    return {
        name: Acceptance.of(chances(both[0], both[1], own_answers(model, invoices, temperature), greedy=greedy))
        for name, temperature, greedy in (("greedy", 0.0, True), ("sampled", 1.0, False))
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=int, default=500, help="how many held-out invoices")
    parser.add_argument("--draft", type=Path, default=DRAFT_FOLDER)
    options = parser.parse_args()
    invoices = held_out_invoices(options.held_out, EVALUATION_SEED)
    lengths = (f"of {length}" for length in range(1, LONGEST + 1))
    table = Table("", "accepted", *lengths, "tokens", title=f"{len(invoices)} held-out invoices")
    for name, found in measure(invoices, draft=options.draft).items():
        table.add_row(name, f"{found.mean:.1%}", *(f"{each:.2f}" for each in found.expected), f"{found.tokens:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
