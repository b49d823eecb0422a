"""The form of a template's calls is found by showing it a call; one that leaves something out is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ValidationFailed
from penstock.registry.chat_template import ChatTemplate
from penstock.registry.tokenizer import ModelTokenizer
from penstock.tools.forms import FORMS

from tests.platform.registry import templates, tool_templates
from tests.platform.registry.model_folders import make_folder

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look_up", "description": "Looks."}}
CALL = {"id": "call_12_0_0", "type": "function", "function": {"name": "look_up", "arguments": '{"b": 1, "a": "é"}'}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_12_0_0", "content": "This one."},
]


@pytest.mark.parametrize(
    ("template", "form"),
    [("HERMES", "hermes"), ("LLAMA", "llama"), ("MISTRAL", "mistral"), ("MISTRAL_SPACED", "mistral-spaced")],
)
def test_a_call_is_shown_as_the_model_would_write_it(template: str, form: str) -> None:
    made = ChatTemplate(getattr(tool_templates, template), TOKENS)

    known = {known.name: known for known in FORMS}[form]
    assert made.call_form is known
    told = made.render(TALK, [TOOL])
    assert known.written("look_up", '{"b": 1, "a": "é"}').removesuffix("}") in told
    assert "Looks." in told
    assert "This one." in told


def test_every_form_has_a_template_that_uses_it() -> None:
    made = [ChatTemplate(source, TOKENS).call_form for name, source in vars(tool_templates).items() if name.isupper()]
    assert set(FORMS) <= {form for form in made if not isinstance(form, str)}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (tool_templates.FORGETS_TOOLS, "does not show tools"),
        (tool_templates.FORGETS_RESULTS, "does not show a tool's result"),
        (tool_templates.REFUSES_CALLS, "no calls here"),
        (tool_templates.OTHERWISE, "none of the forms that are known here, which are those of Hermes and Qwen"),
        (tool_templates.UNCLOSED, "none of the forms"),
        (tool_templates.BARE_BUT_LATE, "none of the forms"),
        (templates.CHATML, "does not show tools"),
        (templates.INSTRUCTIONS, "refuses a conversation with a call"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_field(tmp_path: Path, source: str, why: str) -> None:
    tokenizer = ModelTokenizer.from_folder(make_folder(tmp_path / "model", chat_template=source))
    with pytest.raises(ValidationFailed, match=why) as refused:
        tokenizer.encode_input({"messages": TALK[:1]}, [TOOL])
    assert refused.value.field == "params.tools"
    with pytest.raises(ValidationFailed) as dropped:
        tokenizer.encode_input({"messages": TALK})
    assert dropped.value.field == "input.messages"


def test_a_conversation_without_tools_is_rendered_as_ever() -> None:
    made = ChatTemplate(templates.AS_JSON, TOKENS)

    shown = json.loads(made.render(TALK[:1]).split("|")[0])
    assert shown == TALK[:1]


def test_templates_get_ids_that_mistral_takes_and_the_name_of_what_was_called() -> None:
    (_, called, result) = json.loads(ChatTemplate(templates.AS_JSON, TOKENS).render(TALK).split("|")[0])

    (call,) = called["tool_calls"]
    assert call["id"] == result["tool_call_id"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
    assert result["name"] == "look_up"
    assert call["function"]["arguments"] == {"b": 1, "a": "é"}
