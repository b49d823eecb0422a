"""Decoding event streams, however the bytes are cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from penstock.client.sse import Message, messages


def decode(text: str) -> list[Message]:
    return list(messages([text.encode()]))


def test_a_message_has_event_data_and_id() -> None:
    assert decode("id: 3.57\nevent: output.delta\ndata: {}\n\n") == [Message("output.delta", "{}", "3.57")]


def test_data_lines_are_joined() -> None:
    assert decode("data: a\ndata:b\ndata\n\n") == [Message("message", "a\nb\n", None)]


def test_comments_retry_and_blocks_without_data_are_no_messages() -> None:
    assert decode(": still here\n\nretry: 1000\n\nid: 4\n\n\n\n") == []


def test_a_message_that_was_cut_off_is_never_given() -> None:
    assert decode("data: whole\n\ndata: half") == [Message("message", "whole", None)]
    assert decode("data: whole\n\ndata: half\n") == [Message("message", "whole", None)]


def test_only_one_space_is_dropped() -> None:
    assert decode("data:  two\n\n") == [Message("message", " two", None)]


def test_an_id_with_nul_is_ignored() -> None:
    assert decode("id: a\0b\ndata: x\n\n") == [Message("message", "x", None)]


def test_other_line_separators_belong_to_the_data() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    assert decode(f"data: {text}\n\n") == [Message("message", text, None)]


@given(
    lines=st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1, max_size=4
    ),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_where_the_bytes_are_cut_makes_no_difference(lines: list[str], ending: str, cuts: list[int]) -> None:
    text = "".join(f"data: {line}{ending}" for line in lines) + ending + f"data: next{ending}{ending}"
    data = (text + ": the end").encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(places)]
    assert list(messages(chunks)) == [
        Message("message", "\n".join(lines), None),
        Message("message", "next", None),
    ]
