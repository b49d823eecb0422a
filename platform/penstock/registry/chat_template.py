"""A model's own chat template: found where `transformers` looks for it, rendered as `transformers` renders it.

The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox and sees plain data alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import ModelFolderInvalid, ValidationFailed
from penstock.registry.files import read_json_if_there, read_text
from penstock.tools.definitions import parameters_of
from penstock.tools.detection import detect_form
from penstock.tools.forms import CallForm

TEMPLATE_FILE: Final = "chat_template.jinja"
_CONFIG_FILE: Final = "tokenizer_config.json"
# What a template raises on purpose, and what its expressions raise on messages that it was not made for.
_REFUSALS: Final = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled template with the special tokens that it may name. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFolderInvalid(
                f"the chat template is not valid Jinja, line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens)

    @cached_property
    def call_form(self) -> CallForm | str:
        """How it writes calls, or in words why tools cannot be used with it."""
        return detect_form(self.render)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt up to where the answer begins. Raises `ValidationFailed` with what the template refuses."""
        try:
            return self._template.render(
                messages=_as_templates_expect(messages),
                tools=[_shown(tool) for tool in tools] or None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except _REFUSALS as error:
            reason = str(error) or type(error).__name__
            raise ValidationFailed(
                f"the model's chat template refuses these messages: {reason}", field="input.messages"
            ) from error


def find_chat_template(folder: Path) -> str | None:
    """The text of `chat_template.jinja`, or else `chat_template` of `tokenizer_config.json`; None without both."""
    if (folder / TEMPLATE_FILE).exists():
        return read_text(folder, TEMPLATE_FILE)
    template = read_json_if_there(folder, _CONFIG_FILE).get("chat_template")
    if template is None or isinstance(template, str):
        return template
    for entry in template if isinstance(template, list) else ():
        match entry:
            case {"name": "default", "template": str(text)}:
                return text
    raise ModelFolderInvalid(
        f"{folder / _CONFIG_FILE}: chat_template must be text, or a list of named texts of which one is named default",
        file=_CONFIG_FILE,
    )


def _as_templates_expect(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as objects, results with the name of what was called, and ids that every template takes."""
    called: dict[str, str] = {}
    told: list[dict[str, Any]] = []
    for message in messages:
        shown = dict(message)
        if "tool_calls" in message:
            called |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
            shown["tool_calls"] = [_shown_call(call) for call in message["tool_calls"]]
        if "tool_call_id" in message:
            shown |= {
                "tool_call_id": _short_id(message["tool_call_id"]),
                "name": called[message["tool_call_id"]],
            }
        told.append(shown)
    return told


def _shown_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
    return {"id": _short_id(call["id"]), "type": "function", "function": function}


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as models were trained to see one."""
    function = {
        "name": tool["function"]["name"],
        "description": tool["function"].get("description") or "",
        "parameters": parameters_of(tool),
    }
    return {"type": "function", "function": function}


def _short_id(call_id: str) -> str:
    """Nine letters and digits, which Mistral's templates insist on."""
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:9]


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks words to train on; here it only shows its inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # noqa: DTZ005 - templates expect the local date, as in transformers


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As JSON; unlike Jinja's own filter without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
