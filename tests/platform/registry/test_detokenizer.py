"""Text that comes token by token is the text of the whole, for every kind of tokenizer that is served."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from penstock.errors import ModelFolderInvalid
from penstock.registry.detokenizer import IncrementalDetokenizer, steps_of
from tokenizers import Tokenizer

from tests.platform.registry import model_folders

TOKENIZERS = {
    "byte-level": model_folders.byte_level(),
    "byte fallback, stripped": model_folders.byte_fallback(),
    "byte fallback, not stripped": model_folders.byte_fallback(strips=False),
    "metaspace": model_folders.metaspace(),
    "no decoder": model_folders.words(),
}
every_kind = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=list(TOKENIZERS))


def specials(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(number for number, token in added.items() if token.special)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def stream(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    """What each token settles, then what the end does."""
    detokenizer = IncrementalDetokenizer(tokenizer, specials(tokenizer), steps_of(tokenizer)(), prompt)
    return [*(detokenizer.push(number) for number in ids), detokenizer.flush()]


@every_kind
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_tokens_put_together_are_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 5), max_size=40))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback, stripped", "byte fallback, not stripped"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_as_it_was(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    marked = text.replace("▁", " ") if kind != "byte-level" else text  # the mark itself is a space to these
    special = any(token in text for token in model_folders.SPECIAL)
    if not special:
        assert "".join(stream(tokenizer, ids)) == marked


@every_kind
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_output_goes_on_from_its_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(model_folders.CORPUS))
    prompt = tokenizer.encode(text, add_special_tokens=False).ids
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=20))
    said = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + ids, skip_special_tokens=True)
    # Bytes that spoil the prompt's own last run would change what the prompt says, which nothing can take back.
    assume(whole.startswith(said))
    assert said + "".join(stream(tokenizer, ids, prompt)) == whole


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=30), cut=st.integers(0, 200))
def test_a_prompt_may_end_amid_a_character(text: str, cut: int) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    cut = cut % (len(ids) + 1)
    rest = "".join(stream(tokenizer, ids[cut:], ids[:cut]))
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith(rest)
    assert "\ufffd" not in rest or "\ufffd" in text


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback, stripped"])
def test_no_piece_holds_half_a_character(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("a🦊b", add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert len(ids) >= 5  # the fox takes three tokens or four
    assert [piece for piece in pieces if piece] in (["a", "🦊", "b"], ["a", "🦊b"])


def test_a_character_that_is_never_finished_shows_as_such_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("🦊", add_special_tokens=False).ids[:-1]
    assert stream(tokenizer, ids) == [*[""] * len(ids), "\ufffd"]


def test_byte_level_text_is_settled_as_soon_as_its_characters_are_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("请在", add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces[:-1]) == "请在"
    assert pieces[-1] == ""


def test_special_tokens_and_unknown_ids_have_no_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end = token_id(tokenizer, "</s>")
    assert stream(tokenizer, [end, 10**6, end]) == ["", "", "", ""]


def test_a_token_that_was_added_as_a_word_keeps_its_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert stream(tokenizer, [token_id(tokenizer, "<plain word>")]) == ["<plain word>", ""]


def test_the_first_word_after_a_prompt_keeps_its_space() -> None:
    tokenizer = TOKENIZERS["byte fallback, stripped"]
    word = tokenizer.encode("dog", add_special_tokens=False).ids
    assert "".join(stream(tokenizer, word)) == "dog"
    assert "".join(stream(tokenizer, word, word)) == " dog"


def test_a_long_prompt_costs_no_more_than_its_end() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    prompt = tokenizer.encode("many words " * 5000, add_special_tokens=False).ids
    fox = tokenizer.encode("🦊", add_special_tokens=False).ids
    assert "".join(stream(tokenizer, fox[2:], [*prompt, *fox[:2]])) == "🦊"


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback, stripped"])
def test_half_a_character_of_the_prompt_is_the_outputs_only_if_it_finishes_it(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    fox = tokenizer.encode("🦊", add_special_tokens=False).ids
    half, rest = fox[:-2], fox[-2:]
    letter = tokenizer.encode("ab", add_special_tokens=False).ids[-1:]
    assert "".join(stream(tokenizer, rest, half)) == "🦊"
    assert "".join(stream(tokenizer, [], half)) == ""
    assert "".join(stream(tokenizer, letter, half)) == tokenizer.decode([*half, *letter]).lstrip("\ufffd ")


def test_a_decoder_that_cannot_be_streamed_is_refused_by_name() -> None:
    with pytest.raises(ModelFolderInvalid, match=r"Regex.*cannot be streamed"):
        steps_of(model_folders.unstreamable())
