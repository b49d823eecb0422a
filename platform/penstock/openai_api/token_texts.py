"""Log-probabilities in OpenAI's two forms, which name tokens by their text and bytes where a job names them by id."""

import codecs
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

Token = Mapping[str, Any]
"""`token_id`, `logprob` and `top_logprobs`, as a job's output tells it."""

_UTF8: Final = codecs.getincrementaldecoder("utf-8")


class TokenBytes(Protocol):
    """The part of a model's vocabulary that is needed here."""

    def bytes_of(self, token_id: int) -> bytes:
        """What the token writes; of a special token its name."""

    def is_special(self, token_id: int) -> bool:
        """Whether it stands for no text."""


def text_of(token_ids: Iterable[int], vocabulary: TokenBytes) -> str:
    """What the tokens write together, without special ones."""
    spoken = [vocabulary.bytes_of(token_id) for token_id in token_ids if not vocabulary.is_special(token_id)]
    return b"".join(spoken).decode(errors="replace")


def chat_logprobs(tokens: Iterable[Token], vocabulary: TokenBytes) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {"content": [_chat_token(token, vocabulary) for token in tokens], "refusal": None}


class CompletionLogprobs:
    """`logprobs` of one choice of a completion, token by token: `text_offset` counts the characters before each."""

    def __init__(self, vocabulary: TokenBytes) -> None:
        self._vocabulary = vocabulary
        self._characters = 0
        self._decoder = _UTF8("replace")

    def tell(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The four lists for the tokens that come next."""
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            told["tokens"].append(self._name(token))
            told["token_logprobs"].append(token["logprob"])
            told["top_logprobs"].append(self._likeliest(token))
            told["text_offset"].append(self._characters)
            self._advance(token["token_id"])
        return told

    def _likeliest(self, token: Token) -> dict[str, float] | None:
        """With the token itself, also where it is none of the likeliest; nothing for the first of a prompt."""
        if token["logprob"] is None:
            return None
        others = {self._name(other): other["logprob"] for other in token.get("top_logprobs") or ()}
        return others | {self._name(token): token["logprob"]}

    def _name(self, token: Token) -> str:
        """Its text, or its bytes where they are no whole characters, so that different tokens differ."""
        written = self._vocabulary.bytes_of(token["token_id"])
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)

    def _advance(self, token_id: int) -> None:
        if not self._vocabulary.is_special(token_id):
            self._characters += len(self._decoder.decode(self._vocabulary.bytes_of(token_id)))


def _chat_token(token: Token, vocabulary: TokenBytes) -> dict[str, Any]:
    likeliest = [_named(other, vocabulary) for other in token.get("top_logprobs") or ()]
    return _named(token, vocabulary) | {"top_logprobs": likeliest}


def _named(token: Token, vocabulary: TokenBytes) -> dict[str, Any]:
    written = vocabulary.bytes_of(token["token_id"])
    return {"token": written.decode(errors="replace"), "logprob": token["logprob"], "bytes": list(written)}
