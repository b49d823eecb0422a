"""Tokens that are pieces of characters, and special ones, told by text and bytes."""

from penstock.openai_api.token_texts import CompletionLogprobs, chat_logprobs, text_of

EURO = "€".encode()
TOKENS = {0: b"<s>", 1: EURO[:2], 2: EURO[2:], 3: b"ab"}


class Pieces:
    def bytes_of(self, token_id: int) -> bytes:
        return TOKENS[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == 0


def told(token_id: int, logprob: float | None, *others: int) -> dict[str, object]:
    likeliest = [{"token_id": other, "logprob": -0.5} for other in others]
    return {"token_id": token_id, "logprob": logprob, "top_logprobs": likeliest}


def test_offsets_count_whole_characters_and_no_special_tokens() -> None:
    one = CompletionLogprobs(Pieces())
    first = one.tell([told(0, None), told(3, -1.0, 3), told(1, -2.0, 2)])
    second = one.tell([told(2, -3.0), told(3, -4.0)])

    assert first["text_offset"] + second["text_offset"] == [0, 0, 2, 2, 3]
    assert first["tokens"] == ["<s>", "ab", "bytes:\\xe2\\x82"]
    assert first["top_logprobs"] == [None, {"ab": -1.0}, {"bytes:\\xac": -0.5, "bytes:\\xe2\\x82": -2.0}]
    assert second["token_logprobs"] == [-3.0, -4.0]


def test_a_chats_tokens_carry_their_bytes() -> None:
    (token,) = chat_logprobs([told(1, -2.0, 3)], Pieces())["content"]

    assert (token["token"], token["bytes"], token["logprob"]) == ("\ufffd", list(EURO[:2]), -2.0)
    assert token["top_logprobs"] == [{"token": "ab", "logprob": -0.5, "bytes": [97, 98]}]


def test_the_text_of_ids_is_put_together_before_it_is_read() -> None:
    assert text_of([0, 1, 2, 3], Pieces()) == "€ab"
