"""The draft model as it is shipped: the model's tokenizer, half its size or less; what it proposes mostly stands."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from penstock_compress.training import Training
from penstock_engine import EngineConfig
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from examples.invoices import qat as qat_example
from examples.invoices.acceptance import Acceptance, chances, expected_accepted, measure, own_answers
from examples.invoices.draft import CUT, DRAFT_FOLDER, make_draft
from examples.invoices.evaluate import MODEL_FOLDER, answers_by_engine, answers_by_transformers, held_out_invoices
from examples.invoices.generator import Invoice, draw_invoice
from examples.invoices.lessons import answered, calibration, prompts
from examples.invoices.scoring import prompt_ids

TEST_SEED = 7_004
"""Held-out invoices that no figure in the README is from."""
BRIEF = Training(steps=2, batch=2, most=8)


def no_progress(_: int) -> None:
    """Nobody is watching."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; the comparison is to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def invoices() -> list[Invoice]:
    return held_out_invoices(24, TEST_SEED)


def test_four_proposals_in_five_stand_on_invoices_never_seen(invoices: list[Invoice]) -> None:
    found = measure(invoices)
    assert found["greedy"].mean >= 0.8
    assert found["sampled"].mean >= 0.8
    for each in found.values():
        assert each.tokens > 24 * 20
        assert all(one < other for one, other in zip(each.expected, each.expected[1:], strict=False))


def test_a_draft_costs_half_of_the_model_at_most_and_has_its_tokens() -> None:
    sizes = []
    for folder in (DRAFT_FOLDER, MODEL_FOLDER):
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118  safe_open has keys alone
        assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
        sizes.append(sum(tensor.numel() for tensor in tensors))
    assert sizes[0] < 0.5 * sizes[1]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (DRAFT_FOLDER / name).read_bytes() == (MODEL_FOLDER / name).read_bytes()
    assert json.loads((DRAFT_FOLDER / "config.json").read_text())["num_hidden_layers"] == CUT.keep_layers


def test_the_engine_runs_the_draft_as_transformers_does(invoices: list[Invoice]) -> None:
    engine = answers_by_engine(DRAFT_FOLDER, invoices, EngineConfig(dtype="float32"), no_progress)
    others = answers_by_transformers(DRAFT_FOLDER, invoices, no_progress)
    assert sum(one == other for one, other in zip(engine, others, strict=True)) >= len(invoices) - 1


def test_a_model_accepts_all_that_it_proposes_itself(invoices: list[Invoice]) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32).eval()
    answers = own_answers(MODEL_FOLDER, invoices[:2], temperature=0)
    for greedy in (True, False):
        own = chances(model, model, answers, greedy=greedy)
        assert [len(each) for each in own] == [len(lesson.ids) - lesson.start for lesson in answers]
        assert Acceptance.of(own).mean == pytest.approx(1, abs=1e-4)


def test_expected_numbers_are_sums_of_products() -> None:
    a, b, c = 0.5, 0.8, 0.25
    expected = expected_accepted(torch.tensor([a, b, c]))
    one = a + b + c
    two = one + a * b + b * c
    three = two + a * b * c
    assert expected.tolist() == pytest.approx([one, two, three, three, three])
    whole = Acceptance.of([torch.tensor([a, b]), torch.tensor([c])])
    assert whole.mean == pytest.approx(one / 3)
    assert whole.expected[:2] == pytest.approx([one / 3, (one + a * b) / 3])
    assert whole.tokens == 3


def test_the_command_makes_a_model_folder(tmp_path: Path) -> None:
    make_draft(tmp_path / "made", tmp_path / "run", BRIEF, lessons=4)
    made, shipped = (load_file(folder / "model.safetensors") for folder in (tmp_path / "made", DRAFT_FOLDER))
    assert {name: made[name].shape for name in made} == {name: shipped[name].shape for name in shipped}
    for path in DRAFT_FOLDER.glob("*.json"):
        assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes()


def test_qat_writes_three_bits(tmp_path: Path) -> None:
    outcome = qat_example.train_rounded(tmp_path / "int3", BRIEF, lessons=4)
    assert outcome.bytes < 0.31 * outcome.source_bytes
    described = json.loads((tmp_path / "int3" / "config.json").read_text())["quantization_config"]
    assert described["config_groups"]["group_0"]["weights"]["num_bits"] == 3


def test_lessons_are_trainings_invoices() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
    first, second = prompts(tokenizer, 5, 2)
    assert list(second.ids) == prompt_ids(tokenizer, draw_invoice(5, 1))
    assert not first.is_answered
    whole = answered(tokenizer, draw_invoice(5, 0))
    assert tokenizer.decode(list(whole.ids[whole.start :])) == draw_invoice(5, 0).answer
    text = calibration(tokenizer, 5, 3)
    assert text.shape == (3, 256)
    assert text.flatten()[: len(whole.ids)].tolist() == list(whole.ids)
