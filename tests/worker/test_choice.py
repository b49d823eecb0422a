"""One choice: entries of a token stream, stop strings, unfinished characters, and taking over in the middle."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from penstock.jobs.journal import JournalEntry
from penstock.registry.tokenizer import ModelTokenizer
from penstock_worker.choice import ChoiceStream
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """One token for each byte, so that every character beyond ASCII spans several."""
    vocabulary = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return ModelTokenizer.from_folder(folder)


def stream(
    tokenizer: ModelTokenizer, *, stops: Sequence[str] = (), min_tokens: int = 0, fence: int = 1
) -> ChoiceStream:
    return ChoiceStream(0, tokenizer.detokenizer(), stops=stops, min_tokens=min_tokens, fence=fence)


def run(choice: ChoiceStream, token_ids: Sequence[int], last: str | None = None) -> list[JournalEntry]:
    """The entries of these tokens, until the choice ends; `last` is the engine's reason at the last token."""
    entries: list[JournalEntry] = []
    for at, token_id in enumerate(token_ids):
        entries += choice.take(token_id, None, last if at == len(token_ids) - 1 else None)
        if choice.finish_reason is not None:
            break
    return entries


def text_of(entries: Sequence[JournalEntry]) -> str:
    return "".join(entry.text for entry in entries)


def test_every_token_has_one_entry_and_the_end_has_its_own(tokenizer: ModelTokenizer) -> None:
    tokens = tokenizer.encode_input({"prompt": "née"})
    entries = run(stream(tokenizer, fence=7), tokens, "length")
    assert [entry.token_id for entry in entries] == [*tokens, None]
    assert [entry.index for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.text for entry in entries] == ["n", "", "é", "e", ""]
    assert [entry.finish_reason for entry in entries] == [None, None, None, None, "length"]
    assert {entry.fence for entry in entries} == {7}


def test_an_unfinished_character_comes_with_the_end(tokenizer: ModelTokenizer) -> None:
    tokens = tokenizer.encode_input({"prompt": "né"})[:-1]
    entries = run(stream(tokenizer), tokens, "length")
    assert entries[-1].text == "\ufffd"


def test_the_output_is_cut_before_a_stop_string_that_spans_tokens(tokenizer: ModelTokenizer) -> None:
    tokens = tokenizer.encode_input({"prompt": "one, two; three"})
    entries = run(stream(tokenizer, stops=["two;"]), tokens)
    assert text_of(entries) == "one, "
    assert entries[-1].finish_reason == "stop"
    assert len(entries) == len("one, two;") + 1  # nothing is taken after it


def test_what_only_begins_a_stop_string_is_sent_in_the_end(tokenizer: ModelTokenizer) -> None:
    entries = run(stream(tokenizer, stops=["twofold"]), tokenizer.encode_input({"prompt": "one, two"}), "length")
    assert text_of(entries) == "one, two"
    assert entries[-1].text == "two"
    assert entries[-1].finish_reason == "length"


def test_a_stop_string_within_the_least_output_does_not_stop(tokenizer: ModelTokenizer) -> None:
    entries = run(stream(tokenizer, stops=["b"], min_tokens=3), tokenizer.encode_input({"prompt": "abcabc"}))
    assert text_of(entries) == "abca"


def test_a_stop_token_has_no_text(tokenizer: ModelTokenizer) -> None:
    entries = run(stream(tokenizer), tokenizer.encode_input({"prompt": "abc"}), "stop")
    assert text_of(entries) == "ab"
    assert [entry.token_id is None for entry in entries] == [False, False, False, True]


def test_a_nul_is_replaced(tokenizer: ModelTokenizer) -> None:
    entries = run(stream(tokenizer), tokenizer.encode_input({"prompt": "a\x00b"}), "length")
    assert text_of(entries) == "a\ufffdb"


@pytest.mark.parametrize("stops", [[], ["née"], ["zu viel"]])
def test_a_successor_goes_on_wherever_the_first_holder_died(tokenizer: ModelTokenizer, stops: list[str]) -> None:
    tokens = tokenizer.encode_input({"prompt": "die née Müller z u zzu vie"})
    undisturbed = run(stream(tokenizer, stops=stops), tokens, "length")
    for died_at in range(len(undisturbed) - 1):  # the last token and the end are journalled together
        journal = undisturbed[:died_at]
        successor = stream(tokenizer, stops=stops)
        successor.replay(journal)
        assert [*journal, *run(successor, tokens[died_at:], "length")] == undisturbed


def test_a_choice_that_has_ended_stays_so(tokenizer: ModelTokenizer) -> None:
    entries = run(stream(tokenizer), tokenizer.encode_input({"prompt": "abc"}), "length")
    successor = stream(tokenizer)
    successor.replay(entries)
    assert successor.finish_reason == "length"
    assert successor.end("cancelled") == []
