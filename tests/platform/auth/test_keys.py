"""The text of an API key."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.auth.keys import check_key, digest_of, generate_key, hint_of
from penstock.errors import Unauthenticated

LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_key_says_what_it_is_for_and_is_accepted() -> None:
    key = generate_key("live")

    assert re.fullmatch(r"psk_live_[0-9A-Za-z]{49}", key)
    check_key(key, "live")


def test_no_two_keys_are_alike() -> None:
    assert len({generate_key("live") for _ in range(1000)}) == 1000


@given(position=st.integers(0, 48), letter=st.sampled_from(LETTERS))
def test_one_wrong_letter_is_called_a_typo(position: int, letter: str) -> None:
    key = generate_key("live")
    start = len("psk_live_") + position
    mistyped = key[:start] + letter + key[start + 1 :]
    if mistyped == key:
        check_key(mistyped, "live")
    else:
        with pytest.raises(Unauthenticated, match="mistyped"):
            check_key(mistyped, "live")


def test_two_swapped_letters_are_called_a_typo() -> None:
    key = generate_key("live")
    place = next(at for at in range(10, 40) if key[at] != key[at + 1])
    with pytest.raises(Unauthenticated, match="mistyped"):
        check_key(key[:place] + key[place + 1] + key[place] + key[place + 2 :], "live")


@pytest.mark.parametrize("text", ["", "psk_live_", "sk-abc", "psk_live_short", "psk_live_" + "ä" * 49, "\0"])
def test_what_cannot_be_a_key_is_told_so(text: str) -> None:
    with pytest.raises(Unauthenticated, match="not an API key: one looks like psk_live_"):
        check_key(text, "live")


def test_a_key_of_another_environment_is_told_so() -> None:
    with pytest.raises(Unauthenticated, match="for the environment 'test'; this server is 'live'"):
        check_key(generate_key("test"), "live")


def test_renaming_the_environment_breaks_the_checksum() -> None:
    with pytest.raises(Unauthenticated, match="mistyped"):
        check_key(generate_key("test").replace("psk_test_", "psk_live_"), "live")


def test_what_is_kept_is_the_digest_and_a_hint_that_gives_nothing_away() -> None:
    key = generate_key("live")

    assert len(digest_of(key)) == 32
    assert hint_of(key) == f"psk_live_...{key[-4:]}"
