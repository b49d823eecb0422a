"""Token ids to text, one token at a time, so that the pieces put together equal decoding the whole.

A tokenizer's decoder is a chain of steps. Each has a streaming twin here that holds back what later tokens can still
change: an unfinished UTF-8 character, or a run of byte tokens (which decodes as a whole or, where it is not valid
UTF-8, to one U+FFFD per byte). A decoder with another step is refused by name when the model is loaded.
"""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from tokenizers import Tokenizer

from penstock.errors import ModelFolderInvalid

_CONTEXT_TOKENS: Final = 64
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Step(ABC):
    """One step of a decoder, fed piece by piece."""

    @abstractmethod
    def push(self, piece: str) -> str:
        """What is settled once this piece has come."""

    def flush(self) -> str:
        """What was held back, at the end."""
        return ""

    def end_prompt(self) -> str:
        """The prompt ends here: what that settles. What stays held back goes to the output."""
        return ""


class IncrementalDetokenizer:
    """The text of one output, token by token. Special tokens and ids that the tokenizer does not know have no text."""

    def __init__(
        self, tokenizer: Tokenizer, special_ids: Collection[int], steps: Sequence[Step], prompt_ids: Sequence[int]
    ) -> None:
        self._tokenizer, self._special_ids, self._steps = tokenizer, special_ids, steps
        # The text goes on from the prompt's: its last tokens may end amid a character, and only a text's first
        # word loses its leading space. No character is longer than four tokens.
        spoken = [token_id for token_id in prompt_ids if token_id not in special_ids]
        for token_id in spoken[:1] + spoken[1:][-_CONTEXT_TOKENS:]:
            self.push(token_id)
        text = ""
        for step in steps:
            text = (step.push(text) if text else "") + step.end_prompt()

    def push(self, token_id: int) -> str:
        """The text that this token settles: whole characters only, perhaps none."""
        piece = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
        if piece is None:
            return ""
        for step in self._steps:
            piece = step.push(piece)
        return piece

    def flush(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD. Call it once, after the last token."""
        text = ""
        for step in self._steps:
            text = (step.push(text) if text else "") + step.flush()
        return text


def steps_of(tokenizer: Tokenizer) -> Callable[[], list[Step]]:
    """Makes fresh steps for each text. Raises `ModelFolderInvalid` for a decoder that cannot be streamed."""
    # The state is the decoder's part of tokenizer.json, without a vocabulary of megabytes around it.
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else None
    makers = list(_makers(decoder))
    return lambda: [make() for make in makers]


class _ByteLevel(Step):
    """Each character stands for one byte (GPT-2's alphabet); the bytes are UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown_by_prompt = False

    def push(self, piece: str) -> str:
        try:
            raw = bytes([_BYTE_OF_CHARACTER[character] for character in piece])
        except KeyError:  # an added token, written as it is
            raw = piece.encode()
        return self._without_prompts(self._utf8.decode(raw))

    def flush(self) -> str:
        return self._without_prompts(self._utf8.decode(b"", final=True))

    def end_prompt(self) -> str:
        self._shown_by_prompt = bool(self._utf8.getstate()[0])
        return ""

    def _without_prompts(self, text: str) -> str:
        """An unfinished character at the prompt's end is the output's only if the output finishes it."""
        if not text or not self._shown_by_prompt:
            return text
        self._shown_by_prompt = False
        return text.removeprefix("\ufffd")


class _ByteFallback(Step):
    """`<0x0A>` stands for one byte; a run of them is one text, or one U+FFFD per byte where it is not UTF-8."""

    def __init__(self) -> None:
        self._run = b""
        self._shown_by_prompt = 0

    def push(self, piece: str) -> str:
        if match := _BYTE_TOKEN.fullmatch(piece):
            self._run += bytes([int(match[1], 16)])
            return ""
        return self.flush() + piece

    def flush(self) -> str:
        run, self._run = self._run, b""
        shown, self._shown_by_prompt = self._shown_by_prompt, 0
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * (len(run) - shown)

    def end_prompt(self) -> str:
        """An unfinished character is kept: the output may finish it."""
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        text = utf8.decode(self._run)
        self._run = utf8.getstate()[0]
        self._shown_by_prompt = len(self._run)
        return text


class _Replace(Step):
    """One character becomes another text, everywhere."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def push(self, piece: str) -> str:
        return piece.replace(self._old, self._new)


class _Metaspace(Step):
    """The mark becomes a space; in the first token it vanishes."""

    def __init__(self, mark: str, vanishes_first: bool) -> None:
        self._mark, self._vanishes = mark, vanishes_first

    def push(self, piece: str) -> str:
        vanishes, self._vanishes = self._vanishes, False
        return piece.replace(self._mark, "" if vanishes else " ")


class _StripStart(Step):
    """Up to `count` of a character are taken off the start of the whole text."""

    def __init__(self, character: str, count: int) -> None:
        self._character, self._left = character, count

    def push(self, piece: str) -> str:
        while self._left and piece:
            if not piece.startswith(self._character):
                self._left = 0
                break
            piece, self._left = piece[1:], self._left - 1
        return piece


class _JoinWithSpaces(Step):
    """What a tokenizer without a decoder does."""

    def __init__(self) -> None:
        self._separator = ""

    def push(self, piece: str) -> str:
        separator, self._separator = self._separator, " "
        return separator + piece


def _makers(decoder: dict[str, Any] | None) -> Iterable[Callable[[], Step]]:
    if decoder is None:
        return [_JoinWithSpaces]
    chain = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in chain]
    return [
        _maker(step, first=position == 0, fused="Fuse" in kinds[:position])
        for position, step in enumerate(chain)
        if step["type"] != "Fuse"
    ]


def _maker(step: dict[str, Any], *, first: bool, fused: bool) -> Callable[[], Step]:
    match step:
        case {"type": "ByteLevel"} if first:
            return _ByteLevel
        case {"type": "ByteFallback"}:
            return _ByteFallback
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) == 1:
            return lambda: _Replace(old, new)
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)} if first:
            return lambda: _Metaspace(mark, scheme != "never")
        case {"type": "Strip", "content": str(character), "start": int(start), "stop": 0} if fused:
            return lambda: _StripStart(character, start)
    raise ModelFolderInvalid(
        f"tokenizer.json decodes by {json.dumps(step)}, which cannot be streamed there; ByteLevel or Metaspace "
        "as the first step, ByteFallback, Replace of one character, Fuse, and Strip of the start after Fuse can",
        file="tokenizer.json",
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _byte_alphabet()
