"""The generator: reproducible, right about its own answers, and honest about what is held out."""

import json
import re
from datetime import date
from random import Random

import pytest

from examples.invoices import vocabulary as words
from examples.invoices.dataset import CURRICULUM
from examples.invoices.generator import DATE_FORMATS, FIELDS, Difficulty, draw_invoice
from examples.invoices.layouts import Split, draw_label
from examples.invoices.samples import FOLDER, SAMPLE_COUNT, draw_samples
from examples.invoices.train import VALIDATION_SEED

COUNT = 3_000


@pytest.mark.parametrize("split", Split)
def test_same_arguments_give_the_same_invoice(split: Split) -> None:
    assert draw_invoice(5, 17, split) == draw_invoice(5, 17, split)
    assert draw_invoice(5, 17, split) != draw_invoice(5, 18, split)
    assert draw_invoice(5, 17, split) != draw_invoice(6, 17, split)


def test_a_known_invoice_stays_as_it_is() -> None:
    """A change to the generator changes what the shipped weights were trained and judged on: it must be meant."""
    invoice = draw_invoice(VALIDATION_SEED, 0, Split.HELD_OUT)
    assert invoice.text.splitlines()[0] == KNOWN_FIRST_LINE
    assert invoice.answer == KNOWN_ANSWER


def test_no_training_vendor_uses_a_held_out_name() -> None:
    for index in range(COUNT):
        invoice = draw_invoice(0, index, Split.TRAIN)
        used = {word.lower() for word in re.findall(r"[A-Za-z]+", invoice.text)}
        assert not used & {name.lower() for name in words.HELD_OUT_NAMES}, invoice.text


def test_held_out_vendors_never_occur_in_training() -> None:
    trained = {draw_invoice(0, index).vendor for index in range(COUNT)}
    held_out = [draw_invoice(VALIDATION_SEED, index, Split.HELD_OUT).vendor for index in range(500)]
    assert not trained & set(held_out)
    assert all(any(name.lower() in vendor.lower() for name in words.HELD_OUT_NAMES) for vendor in held_out)


@pytest.mark.parametrize("level", range(len(CURRICULUM)))
def test_held_out_layouts_never_occur_in_training(level: int) -> None:
    trained = {draw_invoice(0, index, Split.TRAIN, CURRICULUM[level]).layout.key for index in range(COUNT)}
    held_out = {draw_invoice(VALIDATION_SEED, index, Split.HELD_OUT).layout.key for index in range(500)}
    assert len(held_out) > 100
    assert not trained & held_out


@pytest.mark.parametrize("kind", words.HELD_OUT_LABELS)
def test_held_out_labels_are_drawn_for_held_out_invoices_alone(kind: str) -> None:
    novel = set(words.HELD_OUT_LABELS[kind])
    trained, held_out = ({draw_label(Random(i), kind, split) for i in range(500)} for split in Split)
    assert not novel & trained
    assert novel <= held_out


@pytest.mark.parametrize("split", Split)
def test_answers_are_compact_json_in_a_fixed_order_and_stand_in_the_text(split: Split) -> None:
    for index in range(500):
        invoice = draw_invoice(3, index, split)
        answer = json.loads(invoice.answer)
        assert tuple(answer) == FIELDS
        assert answer["vendor"] in invoice.text
        assert answer["number"] in invoice.text
        assert date.fromisoformat(answer["date"]).year in range(2015, 2030)
        assert answer["currency"] in invoice.text or words.CURRENCY_SYMBOLS[answer["currency"]] in invoice.text
        digits = re.search(r'"total":(\d+\.\d\d)}$', invoice.answer)
        assert digits
        assert digits[1].replace(".", "") in re.sub(r"[ ,.']", "", invoice.text)


def test_every_date_format_tells_days_apart() -> None:
    """A format that printed two days alike would make its answer a guess."""
    days = [date.fromordinal(date(2024, 1, 1).toordinal() + offset) for offset in range(366)]
    for printed in DATE_FORMATS:
        assert len({printed(day) for day in days}) == len(days)


def test_an_easy_level_asks_for_fewer_fields() -> None:
    invoice = draw_invoice(0, 1, Split.TRAIN, Difficulty(fields=2, distractors=(0, 0)))
    assert len(json.loads(invoice.answer)) == 2


def test_samples_on_disk_are_what_the_generator_draws() -> None:
    assert len(list(FOLDER.glob("*.txt"))) == SAMPLE_COUNT
    for index, invoice in enumerate(draw_samples(), start=1):
        assert (FOLDER / f"{index:02d}.txt").read_text(encoding="utf-8") == invoice.text + "\n"
        assert (FOLDER / f"{index:02d}.json").read_text(encoding="utf-8") == invoice.answer + "\n"
        assert invoice.layout.held_out


KNOWN_FIRST_LINE = "CUSTOMER ORDER NO.:"
KNOWN_ANSWER = (
    '{"vendor":"Summerfield Juniper Tools PLC","number":"7184","date":"2022-06-05","currency":"SEK","total":204.37}'
)
