"""Stop strings are found across the borders of pieces, and nothing that may begin one leaves early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_worker.stop_strings import StopMatcher

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a reader of the whole text would do: stop as soon as a stop string is complete."""
    for end in range(1, len(text) + 1):
        begun = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begun:
            return text[: min(begun)], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_the_output_does_not_depend_on_how_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent = "".join(matcher.push(piece) for piece in pieces)
    wanted, matched = cut("".join(pieces), stops)
    assert matcher.matched is matched
    assert sent + matcher.flush() == wanted


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher, text, sent = StopMatcher(stops), "", ""
    for piece in pieces:
        text += piece
        sent += matcher.push(piece)
        if matcher.matched:
            return
        held = text[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize("pieces", [["Hello, ST", "OP and on"], list("Hello, STOP and on"), ["Hello, STOP and on"]])
def test_text_ends_before_the_stop_string(pieces: list[str]) -> None:
    matcher = StopMatcher(["STOP"])
    assert "".join(matcher.push(piece) for piece in pieces) == "Hello, "
    assert matcher.matched
