"""What models are evaluated on: a JSONL file, as tokens.

{"text": ...}                                   scored from the second token on
{"prompt": ..., "completion": ...}              the completion is scored
{"prompt": ..., "expected": ...}                the same, and greedy answers are held against it
{"messages": [...], "expected": ...}            the prompt is what the model's chat template makes of the messages
{"messages": [..., {"role": "assistant", ...}]} the last message is scored, and no answer is expected
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from penstock_compress.distances import Scored
from penstock_compress.errors import EvaluationDataUnusable

Match = Literal["text", "json"]
LONGEST: Final = 2048  # tokens of a piece of plain text
ROOM: Final = 16  # tokens that an answer may take beyond twice the right one
FORMS: Final = '"text", "prompt" with "completion" or "expected", or "messages" with "expected" or an answer at the end'


@dataclass(frozen=True, slots=True)
class Question:
    """A text whose answer is known: what is right, and how many tokens an answer may take."""

    prompt: Sequence[int]
    expected: str
    most_tokens: int


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Sequences to score, and questions; `decode` makes text of tokens."""

    texts: Sequence[Scored]
    questions: Sequence[Question] = ()
    match: Match = "text"
    decode: Callable[[Sequence[int]], str] = str

    @classmethod
    def read(
        cls, file: Path, model: Path, *, context: int, sequences: int | None = None, match: Match = "text"
    ) -> Self:
        """The first `sequences` lines of `file` (None: all), by the tokenizer and chat template of the folder `model`.

        `context` is how many tokens the models take; longer texts are cut into several. Raises
        EvaluationDataUnusable, naming the line.
        """
        from transformers import AutoTokenizer  # takes seconds, which data made by hand need not wait for

        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise EvaluationDataUnusable(f"{model} has no tokenizer to read {file} by ({error})") from None
        reader = _Lines(file, tokenizer, context)
        for line in _lines(file, sequences):
            reader.take(*line)
        if not reader.texts:
            raise EvaluationDataUnusable(f"{file} holds nothing to score; each line should have {FORMS}")
        return cls(
            reader.texts, reader.questions, match, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
        )

    def is_right(self, answer: Sequence[int], question: Question) -> bool:
        """Whether the tokens `answer` say what is expected, up to white space around it, or as JSON."""
        said, expected = self.decode(answer).strip(), question.expected.strip()
        return said == expected if self.match == "text" else _same_json(said, expected)


class _Lines:
    """The lines of one file on their way to tokens."""

    def __init__(self, file: Path, tokenizer: Any, context: int) -> None:
        self._file, self._tokenizer, self._context = file, tokenizer, context
        self.texts: list[Scored] = []
        self.questions: list[Question] = []

    def take(self, number: int, said: dict[str, Any]) -> None:
        if isinstance(said.get("text"), str):
            return self._take_text(said["text"])
        expected = said.get("expected")
        answer = said.get("completion") if expected is None else expected
        if isinstance(said.get("prompt"), str) and isinstance(answer, str):
            prompt = list(self._tokenizer(said["prompt"])["input_ids"])
        elif isinstance(said.get("messages"), list) and said["messages"]:
            prompt, answer = self._render(number, said["messages"], answer)
        else:
            raise self._wrong(number, f"should be a JSON object with {FORMS}")
        return self._take_answer(number, prompt, answer, expected is not None)

    def _take_text(self, text: str) -> None:
        ids = list(self._tokenizer(text)["input_ids"])
        size = min(LONGEST, self._context)
        pieces = (ids[first : first + size] for first in range(0, len(ids), size))
        self.texts += [Scored(piece, 1) for piece in pieces if len(piece) > 1]

    def _take_answer(self, number: int, prompt: list[int], answer: str, expected: bool) -> None:
        ids = list(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        end = self._tokenizer.eos_token_id
        tokens = [*prompt, *ids, *([] if end is None else [end])]
        if not prompt or not ids:
            raise self._wrong(number, "should have a prompt and an answer of at least a token each")
        if len(tokens) > self._context:
            raise self._wrong(number, f"has {len(tokens):,} tokens; the models take {self._context:,}")
        self.texts.append(Scored(tokens, len(prompt)))
        if expected:
            most = min(2 * len(ids) + ROOM, self._context - len(prompt))
            self.questions.append(Question(prompt, answer, most))

    def _render(self, number: int, messages: list[Any], answer: Any) -> tuple[list[int], str]:
        """The prompt's tokens and the answer: the one that is given, or the last message."""
        if answer is None and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
            answer, messages = messages[-1].get("content"), messages[:-1]
        if not isinstance(answer, str) or not messages:
            raise self._wrong(number, 'should have "expected", or end with a message of the assistant')
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like
            raise self._wrong(number, f"its messages cannot be rendered ({error})") from None
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]), answer

    def _wrong(self, number: int, problem: str) -> EvaluationDataUnusable:
        return EvaluationDataUnusable(f"{self._file}, line {number}: {problem}")


def _lines(file: Path, most: int | None) -> list[tuple[int, dict[str, Any]]]:
    """The first lines that are not empty, with their numbers."""
    try:
        with file.open(encoding="utf-8") as lines:
            numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationDataUnusable(f"{file} cannot be read ({error})") from None
    return [(number, _object(file, number, line)) for number, line in numbered[:most]]


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise EvaluationDataUnusable(f"{file}, line {number}: is no JSON ({error})") from None
    if not isinstance(said, dict):
        raise EvaluationDataUnusable(f"{file}, line {number}: should be a JSON object with {FORMS}")
    return said


def _same_json(said: str, expected: str) -> bool:
    """Also where the right one is no JSON: then the letters count."""
    try:
        return bool(json.loads(said) == json.loads(expected))
    except ValueError:
        return said == expected
