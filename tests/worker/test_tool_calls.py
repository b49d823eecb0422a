"""A choice that calls tools: what its entries tell, how it ends, and where a successor goes on."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.jobs.journal import JournalEntry
from penstock.jobs.output import assemble_output
from penstock.registry.tokenizer import ModelTokenizer
from penstock.tools.forms import HERMES
from penstock_worker.choice import ChoiceStream
from penstock_worker.tool_calls import CallReader
from tokenizers import AddedToken

from tests.platform.registry.model_folders import byte_level, make_folder
from tests.platform.registry.tool_templates import HERMES as TEMPLATE

ARGUMENTS = '{"city": "Zürich", "days": [1, 2]}'
ANSWER = (
    "Sofort. <tool_call>\n" + HERMES.written("weather", ARGUMENTS) + "\n</tool_call>"
    "\n<tool_call>\n" + HERMES.written("now", "{}") + "\n</tool_call>"
)  # fmt: skip
CALLS = [
    {"id": "call_7_2_0", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}},
    {"id": "call_7_2_1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
END = 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    made = byte_level()
    made.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in HERMES.markers])
    folder: Path = tmp_path_factory.mktemp("caller") / "model"
    return ModelTokenizer.from_folder(make_folder(folder, tokenizer=made, chat_template=TEMPLATE))


def stream(tokenizer: ModelTokenizer, *, fence: int = 1, stops: tuple[str, ...] = ()) -> ChoiceStream:
    detokenizer = tokenizer.detokenizer(shown=HERMES.markers)
    calls = CallReader(HERMES, "job_7", 2)
    return ChoiceStream(2, detokenizer, stops=stops, min_tokens=0, fence=fence, calls=calls)


def ids(tokenizer: ModelTokenizer, text: str) -> list[int]:
    return tokenizer.encode_input({"prompt": text})[1:]  # without the beginning of text


def told(choice: ChoiceStream, tokens: list[int], last: str) -> list[JournalEntry]:
    entries: list[JournalEntry] = []
    for place, token in enumerate(tokens, start=1):
        if choice.finish_reason is None:
            entries += choice.take(token, None, last if place == len(tokens) else None)
    return entries


def test_calls_stand_beside_what_was_said_and_end_the_answer(tokenizer: ModelTokenizer) -> None:
    tokens = [*ids(tokenizer, ANSWER), END]
    (choice,) = assemble_output(told(stream(tokenizer), tokens, "stop"))["choices"]

    assert choice == {
        "index": 2, "text": "Sofort. ", "token_ids": tokens, "finish_reason": "tool_calls", "tool_calls": CALLS,
    }  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(place=st.integers(0, 200))
def test_a_successor_goes_on_anywhere_also_within_a_call(tokenizer: ModelTokenizer, place: int) -> None:
    tokens = [*ids(tokenizer, ANSWER), END]
    whole = told(stream(tokenizer), tokens, "stop")
    kept = whole[: place % len(tokens)]
    successor = stream(tokenizer)
    successor.replay(kept)

    assert kept + told(successor, tokens[len(kept) :], "stop") == whole


@pytest.mark.parametrize(
    ("until", "reason", "finish_reason", "calls"),
    [
        ("[1,", "length", "length", '{"city": "Zürich", "days": [1,'),
        ("[1,", "cancelled", "cancelled", '{"city": "Zürich", "days": [1,'),
        ("2]}", "length", "length", ARGUMENTS),
        ("weath", "length", "length", None),
    ],
)
def test_an_answer_that_is_cut_says_so(
    tokenizer: ModelTokenizer, until: str, reason: str, finish_reason: str, calls: str | None
) -> None:
    tokens = ids(tokenizer, ANSWER[: ANSWER.index(until) + len(until)])
    (choice,) = assemble_output(told(stream(tokenizer), tokens, reason))["choices"]

    assert (choice["text"], choice["finish_reason"]) == ("Sofort. ", finish_reason)
    assert [call["function"]["arguments"] for call in choice.get("tool_calls", [])] == ([calls] if calls else [])


def test_a_stop_string_ends_what_is_said_and_no_call(tokenizer: ModelTokenizer) -> None:
    tokens = [*ids(tokenizer, ANSWER), END]
    (choice,) = assemble_output(told(stream(tokenizer, stops=("city", "ofor")), tokens, "stop"))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("S", "stop")
    assert "tool_calls" not in choice
    entries = told(stream(tokenizer, stops=("city", ". <")), tokens, "stop")
    first = next(place for place, entry in enumerate(entries) if entry.calls)
    assert "".join(entry.text for entry in entries[: first + 1]) == "Sofort. "  # of which the end was held back
    (choice,) = assemble_output(entries)["choices"]
    assert (choice["text"], choice["tool_calls"], choice["finish_reason"]) == ("Sofort. ", CALLS, "tool_calls")


class AtOnce:
    """Writes the whole answer with one token."""

    def push(self, token_id: int) -> str:
        return ANSWER

    def flush(self) -> str:
        return ""


def test_what_comes_after_a_stop_string_is_no_call() -> None:
    choice = ChoiceStream(2, AtOnce(), stops=["ofor"], min_tokens=0, fence=1, calls=CallReader(HERMES, "job_7", 2))
    (answer,) = assemble_output(choice.take(5, None, None))["choices"]
    assert (answer["text"], answer["finish_reason"], "tool_calls" in answer) == ("S", "stop", False)


def test_what_only_looked_like_an_opening_is_said(tokenizer: ModelTokenizer) -> None:
    tokens = [*ids(tokenizer, "a <tool"), END]
    entries = told(stream(tokenizer), tokens, "stop")
    assert "".join(entry.text for entry in entries[:-1]) == "a "
    assert (entries[-1].text, entries[-1].finish_reason) == ("<tool", "stop")
