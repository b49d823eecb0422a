"""Grammars over token bytes, by llguidance. The only module that imports it, and imported when a request first asks.

Source: github.com/guidance-ai/llguidance; an Earley parser over a lexer of regex derivatives, so that every grammar is
compiled in milliseconds and each mask is computed from the parser's state, with no automaton over the vocabulary.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from penstock_engine.errors import InvalidGrammar, InvalidSampling
from penstock_engine.request import Grammar

COMPILED_KEPT = 64
WHITESPACE = " ?"
"""JSON between its tokens: none, or one space as most programs write. Of more a model can write without an end."""


class Matcher:
    """Where one output stands in its grammar: a pure function of the output's tokens."""

    def __init__(self, state: LLMatcher) -> None:
        self._state = state
        self._consumed = 0

    def copy(self) -> "Matcher":
        """One at the same place, to go its own way."""
        other = Matcher(self._state.deep_copy())
        other._consumed = self._consumed
        return other

    def advance(self, output: Sequence[int]) -> None:
        """Take in what is new of `output`, which only ever grows."""
        fresh = list(output[self._consumed :])
        self._consumed += len(fresh)
        if fresh:
            self._state.consume_tokens(fresh)

    def fill(self, bits: NDArray[np.int32]) -> None:
        """Set the bit of each token that may come next, and of no other, in `bits` [vocabulary / 32]."""
        self._state.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)

    @property
    def problem(self) -> str:
        """Why no token can come next; empty while one can."""
        return _first_line(self._state.get_error())


class Grammars:
    """Compiles grammars for one tokenizer; keeps the last ones, since many requests share theirs.

    Raises InvalidSampling where the tokenizer is of a kind that llguidance cannot read.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_ids: Sequence[int]) -> None:
        try:
            self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_ids))
        except ValueError as cause:
            remedy = f"must be None: this engine's tokenizer cannot tell the bytes of its tokens ({cause})"
            raise InvalidSampling("grammar", remedy) from cause
        self._compiled: OrderedDict[Grammar, Matcher] = OrderedDict()

    def matcher(self, grammar: Grammar) -> Matcher:
        """At the beginning of `grammar`. Raises InvalidGrammar."""
        if grammar not in self._compiled:
            self._compiled[grammar] = self._compile(grammar)
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > COMPILED_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[grammar].copy()

    def _compile(self, grammar: Grammar) -> Matcher:
        try:
            source = _source(grammar)
        except ValueError as cause:  # such as a number beyond its reach
            raise InvalidGrammar(grammar.kind, _first_line(str(cause))) from cause
        state = LLMatcher(self._tokenizer, source, log_level=0)
        if state.is_error():
            raise InvalidGrammar(grammar.kind, _first_line(state.get_error()))
        return Matcher(state)


def _source(grammar: Grammar) -> str:
    """As llguidance reads it."""
    match grammar.kind, grammar.source:
        case "json_schema", str(schema):
            return LLMatcher.grammar_from_json_schema(
                _checked_json(schema), defaults={"whitespace_pattern": WHITESPACE}
            )
        case "regex", str(regex):
            return LLMatcher.grammar_from_regex(regex)
        case "lark", str(lark):
            return LLMatcher.grammar_from_lark(lark)
        case "choice", tuple(strings) if strings and all(strings):
            return LLMatcher.grammar_from_regex("|".join(re.escape(each) for each in strings))
    raise InvalidGrammar(str(grammar.kind), "kind is json_schema, regex or lark with a text, or choice with texts")


def _checked_json(schema: str) -> str:
    try:
        json.loads(schema)
    except ValueError as cause:
        raise InvalidGrammar("json_schema", f"it is no JSON: {cause}") from cause
    return schema


def _first_line(problem: str) -> str:
    return problem.split("\n", 1)[0]
