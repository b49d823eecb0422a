"""What a model's tokens allow a job to ask for, as its folder says it."""

import json
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ModelFolderInvalid, ValidationFailed
from penstock.registry import vocabulary as vocabulary_module
from penstock.registry.tokenizer import ModelTokenizer
from penstock.registry.vocabulary import Vocabulary

from tests.platform.registry.model_folders import byte_fallback, byte_level, make_folder, metaspace, write_json


def vocabulary_of(folder: Path) -> Vocabulary:
    return Vocabulary.from_folder(folder, ModelTokenizer.from_folder(folder).size)


@pytest.mark.parametrize(
    ("config", "size"),
    [({"vocab_size": 999}, 999), ({"text_config": {"vocab_size": 777}}, 777), ({}, byte_level().get_vocab_size())],
)
def test_the_size_is_the_models_and_else_the_tokenizers(tmp_path: Path, config: dict[str, Any], size: int) -> None:
    assert vocabulary_of(make_folder(tmp_path / "model", config=config)).size == size


@pytest.mark.parametrize("config", [{"vocab_size": "many"}, {"eos_token_id": ["</s>"]}])
def test_a_configuration_that_is_none_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelFolderInvalid, match=r"config\.json: vocab_size and eos_token_id must be numbers"):
        vocabulary_of(make_folder(tmp_path / "model", config=config))


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback], ids=lambda make: make.__name__)
def test_grammars_are_compiled_for_the_models_own_tokens(tmp_path: Path, tokenizer: Any) -> None:
    vocabulary = vocabulary_of(make_folder(tmp_path / "model", tokenizer=tokenizer()))
    assert vocabulary.problem_with("regex", "[0-9]+ EUR") == ""
    assert vocabulary.problem_with("choice", ["a|b", "(", "ü"]) == ""
    assert vocabulary.problem_with("json_schema", json.dumps({"type": "object"})) == ""
    assert vocabulary.problem_with("lark", 'start: "a" | start "b"') == ""
    assert "unclosed group" in vocabulary.problem_with("regex", "a(")


def test_a_verdict_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    compile_it = vocabulary_module._problem

    def counted(tokenizer: Any, kind: str, source: Any) -> str:
        compiled.append(source)
        return compile_it(tokenizer, kind, source)

    monkeypatch.setattr(vocabulary_module, "_VERDICTS_KEPT", 2)
    monkeypatch.setattr(vocabulary_module, "_problem", counted)
    vocabulary = vocabulary_of(make_folder(tmp_path / "model"))
    for source in ("a", "a(", "a", "a(", "b", "a("):
        assert (vocabulary.problem_with("regex", source) == "") == (source != "a(")
    assert vocabulary.problem_with("choice", ["a"]) == vocabulary.problem_with("regex", "a") == ""

    assert compiled == ["a", "a(", "b", ["a"], "a"]


def test_a_model_without_an_end_of_text_can_complete_no_structure(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", config={"eos_token_id": None})
    assert "no end of text" in vocabulary_of(folder).problem_with("regex", "a")
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    assert vocabulary_of(folder).problem_with("regex", "a") == ""


def test_a_tokenizer_that_hides_the_bytes_of_its_tokens_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", tokenizer=metaspace())
    assert "cannot tell the bytes of its tokens" in vocabulary_of(folder).problem_with("regex", "a")


def test_a_long_problem_is_cut(tmp_path: Path) -> None:
    problem = vocabulary_of(make_folder(tmp_path / "model")).problem_with("regex", "(" * 5000)
    assert 10 < len(problem) < 300


@pytest.mark.parametrize("tokenizer", [byte_level, byte_fallback])
def test_tokens_are_told_by_the_bytes_that_they_write(tmp_path: Path, tokenizer: Any) -> None:
    folder = make_folder(tmp_path / "model", tokenizer=tokenizer())
    known = vocabulary_of(folder)
    ids = ModelTokenizer.from_folder(folder).encode_input({"prompt": "Größe 5 €"})

    spoken = [known.bytes_of(token_id) for token_id in ids if not known.is_special(token_id)]
    assert b"".join(spoken).decode().strip() == "Größe 5 €"


def test_a_tokenizer_that_cannot_tell_its_tokens_bytes_is_refused(tmp_path: Path) -> None:
    known = vocabulary_of(make_folder(tmp_path / "model", tokenizer=metaspace()))

    with pytest.raises(ValidationFailed) as refused:
        known.bytes_of(5)
    assert refused.value.field == "params.logprobs"
