"""The shipped tokenizer: exact, word-aligned, and the same through transformers, with its chat template."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.generator import draw_vendor
from examples.invoices.layouts import Split
from examples.invoices.tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE, save_tokenizer, train_tokenizer
from examples.invoices.vocabulary import HELD_OUT_NAMES

TOKENIZER = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
CHAT = AutoTokenizer.from_pretrained(MODEL_FOLDER)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


@pytest.mark.parametrize(
    "text", ["  two  spaces \n\n\ttab", "€1’234.50 ₹ ünïcödé 漢字 🧾", "..... --- ___", "\x00\x7f\r\n"]
)
def test_awkward_text_comes_back_exactly_through_transformers(text: str) -> None:
    assert CHAT.decode(CHAT.encode(text, add_special_tokens=False)) == text


@given(st.from_regex(r"[A-Z][a-z]{2,10}", fullmatch=True), st.from_regex(r"[0-9]{1,8}", fullmatch=True))
def test_words_and_digits_split_alike_in_document_and_answer(word: str, digits: str) -> None:
    for text in (word, digits):
        alone = TOKENIZER.encode(text).ids
        in_document = TOKENIZER.encode(f"Vendor: {text}\n").ids
        in_answer = TOKENIZER.encode(f'{{"vendor":"{text}","').ids
        assert _contains(in_document, alone)
        assert _contains(in_answer, alone)
    assert len(TOKENIZER.encode(digits).ids) == len(digits)


def _contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def test_vocabulary_and_special_tokens() -> None:
    assert TOKENIZER.get_vocab_size() == VOCABULARY_SIZE
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (CHAT.pad_token_id, CHAT.eos_token_id) == (0, 1)


def test_chat_template_marks_each_role_and_asks_for_an_answer() -> None:
    messages = [
        {"role": "system", "content": "Answer with JSON only."},
        {"role": "user", "content": "Total: 1\n"},
        {"role": "assistant", "content": "{}"},
        {"role": "user", "content": [{"type": "text", "text": "Total: 2"}]},
    ]
    text = CHAT.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Answer with JSON only.<|user|>Total: 1<|assistant|>{}<|end|><|user|>Total: 2<|assistant|>"
    )


def test_training_the_tokenizer_again_gives_the_same_one(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(documents=300), tmp_path / "a")
    save_tokenizer(train_tokenizer(documents=300), tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_training_names_use_every_piece_that_held_out_names_need() -> None:
    """A piece never met in a training name cannot be copied: it was what "Alder" and "Juniper" failed on."""
    trained: Counter[str] = Counter()
    for index in range(20_000):
        trained.update(TOKENIZER.encode(draw_vendor(Random(index), Split.TRAIN)).tokens)
    needed = {piece for name in HELD_OUT_NAMES for piece in TOKENIZER.encode(name).tokens}
    assert [piece for piece in needed if trained[piece] < 10] == []
