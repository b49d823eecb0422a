"""However a text is cut into pieces, the same is said and called."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.tools.forms import FORMS, HERMES, LLAMA, MISTRAL, CallForm
from penstock.tools.parser import CallParser, Reading, UnreadableCall

Calls = list[tuple[str, str]]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]<>/é\n_', max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text('ab"}', max_size=3), inner, max_size=2),
    max_leaves=4,
)
arguments = st.builds(
    json.dumps, st.dictionaries(st.text("xy}", max_size=3), values, max_size=3), ensure_ascii=st.booleans()
)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True)


def said_in(form: CallForm) -> st.SearchStrategy[str]:
    pieces = [form.opening[:4], form.opening[-3:], form.before_name[:3], "x", " ", "\n", "{", '"']
    said = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
    return said.filter(lambda text: form.opening not in text and not text.startswith(form.before_name))


def written(form: CallForm, said: str, calls: Calls) -> str:
    if not calls:
        return said
    objects = [form.written(name, given) for name, given in calls]
    return said + form.opening + form.first + (form.between or "").join(objects) + form.last


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in pairwise(bounds)]


def read(form: CallForm, pieces: Sequence[str]) -> tuple[str, Calls]:
    parser = CallParser(form)
    readings = [parser.push(piece) for piece in pieces]
    return put_together([*readings, parser.flush()])


def put_together(readings: Sequence[Reading]) -> tuple[str, Calls]:
    calls: Calls = []
    for part in (part for reading in readings for part in reading.parts):
        if part.name is not None:
            assert part.index == len(calls)
            calls.append((part.name, ""))
        name, had = calls[part.index]
        calls[part.index] = (name, had + part.arguments)
    return "".join(reading.said for reading in readings), calls


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(data=st.data())
def test_any_cut_gives_the_same(form: CallForm, data: st.DataObject) -> None:
    most = 3 if form.between else 1
    said = data.draw(said_in(form))
    calls = data.draw(st.lists(st.tuples(names, arguments), max_size=most))
    text = written(form, said, calls)
    pieces = cut(text, data.draw(st.lists(st.integers(0, 500), max_size=12)))

    assert read(form, pieces) == (said, calls)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_character_by_character_nothing_is_told_late(form: CallForm) -> None:
    """What is certain is told with the character that makes it so: arguments at once, a name at its quote."""
    text = written(form, "Hm. ", [("f", '{"a": "}"}')])
    parser, told = CallParser(form), ""
    begin = text.index('{"a"')
    for place, character in enumerate(text):
        reading = parser.push(character)
        told += "".join(part.arguments for part in reading.parts)
        if begin <= place < begin + len('{"a": "}"}'):
            assert told == text[begin : place + 1]
    assert told == '{"a": "}"}'


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_text_that_is_cut_short_keeps_what_there_is(form: CallForm) -> None:
    text = written(form, "", [("look_up", '{"a": [1, 2]}')])
    until = text.index("[1,") + 3
    assert read(form, [text[:until]]) == ("", [("look_up", '{"a": [1,')])
    assert read(form, [text[: text.index("look_up") + 4]]) == ("", [])
    assert read(form, ["all " + form.opening[:-1]]) == ("all " + form.opening[:-1], [])


def test_llamas_calls_may_begin_an_answer_without_an_opening() -> None:
    call = LLAMA.written("f", "{}")
    assert read(LLAMA, list(call)) == ("", [("f", "{}")])
    assert read(LLAMA, [" " + call]) == (" " + call, [])
    assert read(LLAMA, ['{"na']) == ('{"na', [])
    assert read(HERMES, [call]) == (call, [])


def test_parts_of_two_calls_in_one_piece_stay_apart() -> None:
    text = written(MISTRAL, "", [("f", "{}"), ("g", '{"a": 1}'), ("f", "{}")])
    (reading,) = [CallParser(MISTRAL).push(text)]
    assert [(part.index, part.name, part.arguments) for part in reading.parts] == [
        (0, "f", "{}"), (1, "g", '{"a": 1}'), (2, "f", "{}"),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["<tool_call>x", '<tool_call>\n{"name": "f", "parameters"'])
def test_what_no_grammar_lets_through_is_no_call(wrong: str) -> None:
    with pytest.raises(UnreadableCall):
        read(HERMES, list(wrong))
