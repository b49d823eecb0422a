"""The shipped weights, as anybody would load them: right on invoices never seen, alike in engine and transformers."""

import json
from pathlib import Path

import pytest
import torch
from penstock_engine import EngineConfig
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from examples.invoices.evaluate import (
    ENGINE_BF16,
    ENGINE_FP32,
    MODEL_FOLDER,
    TRANSFORMERS,
    answers_by_engine,
    answers_by_transformers,
    held_out_invoices,
    report,
)
from examples.invoices.generator import Invoice
from examples.invoices.samples import FOLDER as SAMPLES
from examples.invoices.scoring import exact_share, prompt_ids, score

TEST_SEED = 7_004
"""Held-out invoices that neither training's validation nor evaluate.py has looked at."""


def no_progress(_: int) -> None:
    """Nobody is watching."""


@pytest.fixture(scope="module")
def invoices() -> list[Invoice]:
    return held_out_invoices(40, TEST_SEED)


@pytest.fixture(scope="module")
def answers(invoices: list[Invoice]) -> list[str]:
    return answers_by_transformers(MODEL_FOLDER, invoices, no_progress)


def test_nine_in_ten_held_out_invoices_are_read_to_the_letter(invoices: list[Invoice], answers: list[str]) -> None:
    assert exact_share(invoices, answers) >= 0.9


def test_the_engine_answers_what_transformers_answers(invoices: list[Invoice], answers: list[str]) -> None:
    engine = answers_by_engine(MODEL_FOLDER, invoices, EngineConfig(dtype="float32"), no_progress)
    assert sum(a == b for a, b in zip(engine, answers, strict=True)) >= len(answers) - 1


def test_weights_are_bf16_and_small() -> None:
    path = MODEL_FOLDER / "model.safetensors"
    assert path.stat().st_size <= 20_000_000
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118  safe_open has keys alone


@pytest.fixture(scope="module")
def loaded() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype="float32").eval()


@pytest.mark.parametrize("form", ["chat", "chat with a system message", "bare prompt"])
def test_every_form_of_request_is_answered_and_ended(loaded: LlamaForCausalLM, form: str) -> None:
    """A stranger's way: AutoTokenizer, the chat template, generate with the folder's own generation config."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    right = 0
    for path in sorted(SAMPLES.glob("*.txt"))[:4]:
        ids = tokenizer.encode(_prompt(tokenizer, path.read_text(encoding="utf-8"), form), return_tensors="pt")
        output = loaded.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
        assert output[-1] == tokenizer.eos_token_id
        right += tokenizer.decode(output[:-1]) == path.with_suffix(".json").read_text(encoding="utf-8").strip()
    assert right >= 3


def _prompt(tokenizer: AutoTokenizer, text: str, form: str) -> str:
    if form == "bare prompt":
        return text
    system = [{"role": "system", "content": "You read invoices and answer in JSON."}] if "system" in form else []
    messages = [*system, {"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def test_evaluation_sends_what_the_chat_template_renders(invoices: list[Invoice]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    messages = [{"role": "user", "content": invoices[0].text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == prompt_ids(tokenizer.backend_tokenizer, invoices[0])


def test_scores_count_whole_answers_and_fields_apart(invoices: list[Invoice]) -> None:
    wrong = json.loads(invoices[0].answer) | {"currency": "XXX"}
    given = [json.dumps(wrong), "no JSON", *(invoice.answer for invoice in invoices[2:])]
    scores = score(invoices, given)
    assert scores.exact == 38 / 40
    assert scores.fields["vendor"] == 39 / 40
    assert scores.fields["currency"] == 38 / 40


@pytest.mark.parametrize(
    ("engine_wrong", "transformers_wrong", "ships"),
    [(0, 0, True), (1, 1, True), (1, 0, False), (3, 3, False)],
)
def test_the_verdict_needs_both_accuracy_and_agreement(
    invoices: list[Invoice], tmp_path: Path, engine_wrong: int, transformers_wrong: int, ships: bool
) -> None:
    def given(wrong: int) -> list[str]:
        return ["{}"] * wrong + [invoice.answer for invoice in invoices[wrong:]]

    answers = {ENGINE_FP32: given(engine_wrong), ENGINE_BF16: given(0), TRANSFORMERS: given(transformers_wrong)}
    with (tmp_path / "report.txt").open("w") as file:
        assert report(invoices, answers, Console(file=file)) is ships
