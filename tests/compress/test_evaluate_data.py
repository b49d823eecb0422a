"""What is scored of each form of line, and what is wrong with others."""

import json
from pathlib import Path
from typing import Any

import pytest
from penstock_compress.errors import EvaluationDataUnusable
from penstock_compress.evaluation_data import LONGEST, ROOM, EvaluationData, Question
from tokenizers import Tokenizer

MODEL = Path("examples/invoices/model")
END = "<|end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def read(tmp_path: Path, *lines: Any, **others: Any) -> EvaluationData:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return EvaluationData.read(file, MODEL, **{"context": 1024, **others})


def shown(tokenizer: Tokenizer, data: EvaluationData, at: int = 0) -> tuple[str, str]:
    """What is given and what is scored."""
    tokens, start = data.texts[at]
    before, scored = (list(tokens[:start]), list(tokens[start:]))
    return tuple(tokenizer.decode(ids, skip_special_tokens=False) for ids in (before, scored))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("line", "prompt", "scored", "asked"),
    [
        ({"prompt": "Total: ", "completion": "12.00"}, "Total: ", "12.00" + END, False),
        ({"prompt": "Total: ", "expected": "12.00"}, "Total: ", "12.00" + END, True),
        (
            {"messages": [{"role": "user", "content": "Total"}], "expected": "12"},
            "<|user|>Total<|assistant|>",
            "12" + END,
            True,
        ),
        (
            {"messages": [{"role": "user", "content": "Total"}, {"role": "assistant", "content": "12"}]},
            "<|user|>Total<|assistant|>",
            "12" + END,
            False,
        ),
    ],
)
def test_answers_are_scored_to_their_end(
    tokenizer: Tokenizer, tmp_path: Path, line: dict[str, Any], prompt: str, scored: str, asked: bool
) -> None:
    data = read(tmp_path, line)
    assert shown(tokenizer, data) == (prompt, scored)
    assert len(data.questions) == asked
    if asked:
        (question,) = data.questions
        assert list(question.prompt) == list(data.texts[0].tokens[: data.texts[0].start])
        assert question.most_tokens == 2 * len(tokenizer.encode(question.expected).ids) + ROOM


def test_plain_text_is_scored_from_its_second_token_in_pieces(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "Invoice 4711, total 12.00. " * 40
    ids = tokenizer.encode(text).ids
    data = read(tmp_path, {"text": text}, "", {"text": "a"}, context=100)
    assert [token for piece in data.texts for token in piece.tokens] == ids[: len(ids) // 100 * 100] + ids[
        len(ids) // 100 * 100 :
    ]
    assert {piece.start for piece in data.texts} == {1}
    assert max(len(piece.tokens) for piece in data.texts) == 100 < LONGEST


def test_the_first_lines_are_taken(tmp_path: Path) -> None:
    lines = [{"prompt": str(at), "expected": str(at)} for at in range(5)]
    assert [each.expected for each in read(tmp_path, *lines, "no JSON", sequences=3).questions] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"prompt": "a", "completion": "b"}', "{"], "line 2: is no JSON"),
        (["[]"], "line 1: should be a JSON object"),
        (['{"prompt": "a"}'], 'line 1: should be a JSON object with "text"'),
        (['{"messages": [{"role": "user", "content": "a"}]}'], 'line 1: should have "expected"'),
        (['{"messages": ["a"], "expected": "b"}'], "line 1: its messages cannot be rendered"),
        (['{"prompt": "a", "expected": ""}'], "line 1: should have a prompt and an answer"),
        ([json.dumps({"prompt": "a " * 999, "expected": "b " * 99})], "line 1: has .* tokens; the models take 1,024"),
        ([""], "holds nothing to score"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(EvaluationDataUnusable, match=told):
        read(tmp_path, *lines)


def test_a_file_or_tokenizer_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationDataUnusable, match=r"nix\.jsonl cannot be read"):
        EvaluationData.read(tmp_path / "nix.jsonl", MODEL, context=64)
    with pytest.raises(EvaluationDataUnusable, match="no tokenizer"):
        EvaluationData.read(tmp_path / "nix.jsonl", tmp_path, context=64)


@pytest.mark.parametrize(
    ("match", "said", "right"),
    [
        ("text", ' {"a": 1}\n', True),
        ("text", '{"a":1}', False),
        ("json", '{"a":1}', True),
        ("json", '{"a": 2}', False),
        ("json", '{"a": 1', False),
    ],
)
def test_answers_are_compared_as_letters_or_as_json(tokenizer: Tokenizer, match: Any, said: str, right: bool) -> None:
    data = EvaluationData([], match=match, decode=lambda ids: str(tokenizer.decode(list(ids))))
    assert data.is_right(tokenizer.encode(said).ids, Question([0], '{"a": 1}', 9)) is right
