"""Greedy answers through `transformers`, and how many of them are right to the letter."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from examples.invoices.generator import FIELDS, Invoice
from examples.invoices.tokenizer import ASSISTANT, USER

MAX_ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Scores:
    """Shares of right answers, 0 to 1: whole answers, and each field by itself."""

    exact: float
    fields: dict[str, float]


def prompt_ids(tokenizer: Tokenizer, invoice: Invoice) -> list[int]:
    """Token ids of the invoice as one user message: what the chat template renders."""
    return tokenizer.encode(f"{USER}{invoice.text.strip()}{ASSISTANT}").ids


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    invoices: Sequence[Invoice],
    batch_size: int = 32,
    on_batch: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """Return the model's greedy answer to each invoice; `on_batch` is told how many a batch has answered."""
    prompts = [prompt_ids(tokenizer, invoice) for invoice in invoices]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, ids in zip(chosen, _generate(model, [prompts[i] for i in chosen]), strict=True):
            answers[i] = tokenizer.decode(ids)
        on_batch(len(chosen))
    return answers


def _generate(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Left-pad the prompts, decode greedily, return each answer's ids without the end token."""
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    width = max(map(len, prompts))
    output = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        do_sample=False,
        max_new_tokens=MAX_ANSWER_TOKENS,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return [_before(row, end) for row in output[:, width:].tolist()]


def _before(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def exact_share(invoices: Sequence[Invoice], answers: Sequence[str]) -> float:
    """Share of answers that equal the right one to the letter, 0 to 1."""
    return sum(a == invoice.answer for invoice, a in zip(invoices, answers, strict=True)) / len(invoices)


def score(invoices: Sequence[Invoice], answers: Sequence[str]) -> Scores:
    """Compare answers with the right ones; an answer that is no JSON object has no field right."""
    pairs = [(json.loads(invoice.answer), _fields(a)) for invoice, a in zip(invoices, answers, strict=True)]
    shares = {name: sum(right[name] == got.get(name) for right, got in pairs) / len(pairs) for name in FIELDS}
    return Scores(exact_share(invoices, answers), shares)


def _fields(answer: str) -> dict[str, object]:
    try:
        parsed = json.loads(answer)
    except json.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
