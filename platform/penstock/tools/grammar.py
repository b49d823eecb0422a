"""The grammar of an answer with tools: what may be said, and calls that satisfy the tools' schemas.

In Lark's syntax as llguidance reads it (github.com/guidance-ai/llguidance, docs/syntax.md): `%json` is the language of
a schema, `<[7]>` the token of that id. Text ends where a call's opening is complete, and calls end the answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from penstock.tools.definitions import named_function, parameters_of
from penstock.tools.forms import CallForm

_WHITESPACE: Final = " ?"
"""JSON between its tokens, as in `response_format`: of more a model can write without an end."""
_ANYTHING: Final = "(?s:.*)"


def call_grammar(
    form: CallForm,
    marker_ids: Mapping[str, int],
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any],
    *,
    parallel: bool,
) -> str:
    """The grammar that holds an answer to `choice` among the tools, as a job's parameters store them.

    `marker_ids` are the tokens that the model has for the form's markers. Spelled out they mean the same.
    """
    name = named_function(choice)
    callable_tools = [tool for tool in tools if name in (None, tool["function"]["name"])]
    rules = ["%llguidance {}", f"start: {_start(form, choice)}", *_text_rules(form, marker_ids)]
    if choice != "none":
        rules += _call_rules(form, marker_ids, callable_tools, parallel=parallel and form.between is not None)
    return "\n".join(rules) + "\n"


def _start(form: CallForm, choice: str | Mapping[str, Any]) -> str:
    match choice:
        case "none":
            return "TEXT"
        case "auto":
            return "TEXT | opened calls" + (" | calls" if form.bare else "")
    return "opening calls" + (" | calls" if form.bare else "")


def _text_rules(form: CallForm, marker_ids: Mapping[str, int]) -> list[str]:
    """What is said holds no opening, written out or as its token, and does not begin as a bare call does."""
    opening = _pattern(form.opening)
    but = f" & ~/{_pattern(form.before_name)}{_ANYTHING}/" if form.bare else ""
    return [
        f"TEXT: /{_ANYTHING}/ & ~/{_ANYTHING}{opening}{_ANYTHING}/{but}",
        f"OPENING: /{_ANYTHING}{opening}/ & ~/{_ANYTHING}{opening}(?s:.+)/{but}",
        "opened: OPENING" + (f" | TEXT <[{marker_ids[form.opening]}]>" if form.opening in marker_ids else ""),
        f"opening: {_as_written(form.opening, form, marker_ids)}",
    ]


def _call_rules(
    form: CallForm, marker_ids: Mapping[str, int], tools: Sequence[Mapping[str, Any]], *, parallel: bool
) -> list[str]:
    between = _as_written(form.between or "", form, marker_ids)
    more = f"({between} call)*" if parallel else ""
    first, last = (_as_written(text, form, marker_ids) for text in (form.first, form.last))
    rules = [
        f"calls: {first} call {more} {last}",
        "call: " + " | ".join(f"call_{place}" for place in range(len(tools))),
    ]
    for place, tool in enumerate(tools):
        head = json.dumps(form.before_name + tool["function"]["name"] + form.before_arguments)
        schema = parameters_of(tool) | {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
        rules += [f'call_{place}: {head} arguments_{place} "}}"', f"arguments_{place}: %json {json.dumps(schema)}"]
    return rules


def _as_written(text: str, form: CallForm, marker_ids: Mapping[str, int]) -> str:
    """A text as a sequence of terminals, where a marker may also be its token."""
    pieces = re.split(f"({'|'.join(map(re.escape, form.markers))})", text)
    return " ".join(_terminal(piece, marker_ids) for piece in pieces if piece)


def _terminal(piece: str, marker_ids: Mapping[str, int]) -> str:
    literal = json.dumps(piece)
    return f"(<[{marker_ids[piece]}]> | {literal})" if piece in marker_ids else literal


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
