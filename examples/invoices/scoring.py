"""Greedy answers of a transformers model, and how many of them are right to the letter."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from examples.invoices.generator import Invoice
from examples.invoices.tokenizer import ASSISTANT, USER

MAX_ANSWER_TOKENS = 128


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, invoices: Sequence[Invoice], batch_size: int = 32
) -> list[str]:
    """Return the model's greedy answer to each invoice, sent as one user message."""
    prompts = [tokenizer.encode(f"{USER}{invoice.text.strip()}{ASSISTANT}").ids for invoice in invoices]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, ids in zip(chosen, _generate(model, [prompts[i] for i in chosen]), strict=True):
            answers[i] = tokenizer.decode(ids)
    return answers


def _generate(model: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """Left-pad the prompts, decode greedily, return each answer's ids without the end token."""
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
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
