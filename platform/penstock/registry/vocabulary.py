"""A model's tokens as far as a job's parameters name them or ask structure of them: judged at submit, without torch.

Grammars are compiled by llguidance just as the engine compiles them, so what is refused there is refused here first.
"""

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from llguidance import LLMatcher, LLTokenizer

from penstock.errors import ModelFolderInvalid, ValidationFailed
from penstock.registry.files import read_json, read_json_if_there

VOCABULARY_FILES: Final = ("config.json", "generation_config.json")
"""What says how many tokens there are and which of them end a text; the second may be absent."""
WHITESPACE: Final = " ?"
"""JSON between its tokens: none, or one space as most programs write. Of more a model can write without an end."""
_MOST_SHOWN: Final = 200  # characters of a problem, which may quote what was sent
_VERDICTS_KEPT: Final = 1000


class Vocabulary:
    """The tokens of one model. Safe to use from several threads."""

    def __init__(self, tokenizer_file: Path, size: int, eos_ids: Sequence[int]) -> None:
        self.size = size
        self._tokenizer_file = tokenizer_file
        self._eos_ids = list(eos_ids)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()

    @classmethod
    def from_folder(cls, folder: Path, tokenizer_size: int) -> Self:
        """As `config.json` and `generation_config.json` say, or else the tokenizer. Raises `ModelFolderInvalid`."""
        config = read_json(folder, "config.json")
        inner = config.get("text_config")
        text = inner if isinstance(inner, dict) else config
        size = text.get("vocab_size", tokenizer_size)
        eos = read_json_if_there(folder, "generation_config.json").get("eos_token_id", text.get("eos_token_id"))
        ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(isinstance(number, int) for number in (size, *ids)):
            raise ModelFolderInvalid(
                f"{folder / 'config.json'}: vocab_size and eos_token_id must be numbers", file="config.json"
            )
        return cls(folder / "tokenizer.json", size, ids)

    def problem_with(self, kind: str, source: str | Sequence[str]) -> str:
        """Why no output can be held to this grammar; empty where one can.

        `kind` is json_schema, regex or lark with its text, or choice with texts. The last verdicts are kept.
        """
        if not self._eos_ids:
            return "this model has no end of text to complete it with"
        try:
            with self._lock:
                bytes_of_tokens = self._bytes_of_tokens
        except ValueError as error:
            return f"this model's tokenizer cannot tell the bytes of its tokens ({error})"
        asked = hashlib.sha256(json.dumps([kind, source]).encode()).digest()
        with self._lock:
            verdict = self._verdicts.get(asked)
        return self._keep(asked, _problem(bytes_of_tokens, kind, source)) if verdict is None else verdict

    def _keep(self, asked: bytes, verdict: str) -> str:
        with self._lock:
            self._verdicts[asked] = verdict
            if len(self._verdicts) > _VERDICTS_KEPT:
                self._verdicts.popitem(last=False)
        return verdict

    def bytes_of(self, token_id: int) -> bytes:
        """What the token writes; of a special token its name. Raises `ValidationFailed` when that cannot be told."""
        written: bytes = self._known_tokens.decode_bytes([token_id])
        return written

    def is_special(self, token_id: int) -> bool:
        """Whether it stands for no text. Errors as above."""
        return self._known_tokens.is_special_token(token_id)

    @property
    def _known_tokens(self) -> LLTokenizer:
        try:
            with self._lock:
                return self._bytes_of_tokens
        except ValueError as error:
            raise ValidationFailed(
                "this model's tokenizer cannot tell the text of single tokens; ask for none", field="params.logprobs"
            ) from error

    @cached_property
    def _bytes_of_tokens(self) -> LLTokenizer:
        # It insists on an end of text, which only grammars need; those are refused before where there is none.
        return LLTokenizer(str(self._tokenizer_file), n_vocab=self.size, eos_token=self._eos_ids or [0])


def _problem(tokenizer: LLTokenizer, kind: str, source: str | Sequence[str]) -> str:
    try:
        grammar = _as_llguidance_reads_it(kind, source)
    except ValueError as error:  # such as a number beyond its reach
        return _in_one_line(str(error))
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        return _in_one_line(matcher.get_error())
    matcher.compute_logit_bias()  # the first step tells whether anything can come at all
    return "no text satisfies it" if matcher.get_error() else ""


def _as_llguidance_reads_it(kind: str, source: str | Sequence[str]) -> str:
    match kind, source:
        case "json_schema", str():
            return LLMatcher.grammar_from_json_schema(source, defaults={"whitespace_pattern": WHITESPACE})
        case "regex", str():
            return LLMatcher.grammar_from_regex(source)
        case "lark", str():
            return LLMatcher.grammar_from_lark(source)
        case _:
            return LLMatcher.grammar_from_regex("|".join(re.escape(text) for text in source))


def _in_one_line(problem: str) -> str:
    """Where it is wrong, and (of a regex) why, which stands lines below."""
    lines = [line.strip() for line in problem.splitlines()]
    why = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(":")[:_MOST_SHOWN], *why[:1]])
