"""Which form of calls a chat template uses: it is shown a tool, a call and a result, and what it makes of them is read.

A template that leaves any of them out, or writes the call otherwise than a form says, is refused: nothing of a
conversation is dropped silently.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from penstock.errors import ValidationFailed
from penstock.tools.forms import FORMS, SUPPORTED, CallForm

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]
"""A chat template: messages and tools to the prompt, up to where the answer begins."""

_NAME: Final = "probe_tool"
_ARGUMENTS: Final = {"probe_key": "probe value"}
_RESULT: Final = "probe result"
_TOOLS: Final = (
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Probes.",
            "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
        },
    },
)
_QUESTION: Final = ({"role": "user", "content": "probe question"},)
_CONVERSATION: Final = (
    *_QUESTION,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_probe",
                "type": "function",
                "function": {"name": _NAME, "arguments": json.dumps(_ARGUMENTS)},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_probe", "content": _RESULT},
)


def detect_form(render: Render) -> CallForm | str:
    """The form that the template uses, or in words why it uses none of ours."""
    try:
        asked, told = render(_QUESTION, _TOOLS), render(_CONVERSATION, _TOOLS)
    except ValidationFailed as error:
        return f"it refuses a conversation with a call ({error.message})"
    if not all(shown in asked for shown in (_NAME, *_ARGUMENTS)):
        return "it does not show tools to the model"
    if _RESULT not in told:
        return "it does not show a tool's result to the model"
    for form in FORMS:
        if _writes(form, asked, told):
            return form
    return f"it writes calls in none of the forms that are known here, which are those of {SUPPORTED}"


def _writes(form: CallForm, asked: str, told: str) -> bool:
    written = form.written(_NAME, json.dumps(_ARGUMENTS)).removesuffix("}")
    # A call without an opening must be all of the answer: so it stands where the answer would begin.
    before = asked if form.bare else form.opening + form.first
    at = told.find(before + written)
    if at < 0:
        return False
    after = told[at + len(before + written) :]
    return after.startswith(("}" + form.last, ', "id": "'))  # Mistral's says the call's id, which models do not write
