"""Chat templates are found where transformers looks for them, rendered in a sandbox, and refuse with typed errors."""

from pathlib import Path

import pytest
from penstock.errors import ModelFolderInvalid, ValidationFailed
from penstock.registry.chat_template import ChatTemplate, find_chat_template

from tests.platform.registry import templates
from tests.platform.registry.model_folders import write_json

HELLO = [{"role": "user", "content": "hello"}]


def test_a_file_of_its_own_goes_before_the_configuration(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "from the configuration"})
    assert find_chat_template(tmp_path) == "from the configuration"
    (tmp_path / "chat_template.jinja").write_text("from its file")
    assert find_chat_template(tmp_path) == "from its file"


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert find_chat_template(tmp_path) == "plain"


def test_a_folder_may_have_none(tmp_path: Path) -> None:
    assert find_chat_template(tmp_path) is None
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    assert find_chat_template(tmp_path) is None


@pytest.mark.parametrize("wrong", [7, {"default": "x"}, [{"name": "default"}], ["x"]])
def test_a_template_of_the_wrong_type_is_refused(tmp_path: Path, wrong: object) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": wrong})
    with pytest.raises(ModelFolderInvalid, match="chat_template must be text"):
        find_chat_template(tmp_path)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFolderInvalid, match=r"chat_template\.jinja cannot be read as UTF-8"):
        find_chat_template(tmp_path)


def test_a_template_that_is_no_jinja_is_refused_with_its_line() -> None:
    with pytest.raises(ModelFolderInvalid, match="line 2"):
        ChatTemplate("first line\n{% for %}", {})


def test_what_the_template_refuses_names_the_field() -> None:
    template = ChatTemplate(templates.INSTRUCTIONS, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(ValidationFailed, match="roles must alternate") as caught:
        template.render([*HELLO, *HELLO])
    assert caught.value.field == "input.messages"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(ValidationFailed):
        ChatTemplate(attack, {}).render(HELLO)


def test_a_template_cannot_change_its_caller_s_messages() -> None:
    messages = [dict(HELLO[0])]
    with pytest.raises(ValidationFailed):
        ChatTemplate("{% set _ = messages[0].update({'content': 'changed'}) %}", {}).render(messages)
    assert messages == HELLO
