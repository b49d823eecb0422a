"""What a model is trained on: sequences of tokens, and from which token on each of them counts.

A file's lines are read as they are; where a line brings a prompt alone, the teacher answers it, through the engine that
will serve it. A student of such lessons learns what its teacher says, and not what others wrote.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_engine import Engine, EngineConfig, EngineError, Request, SamplingParams
from transformers import AutoTokenizer

from penstock_compress.errors import CalibrationUnusable, SourceUnusable
from penstock_compress.telling import Report, silent

SHORTEST = 2  # tokens of which one can be learned


@dataclass(frozen=True, slots=True)
class Lesson:
    """Token `ids`, of which those from `start` (at least 1) on are learned; none of them where an answer is wanted."""

    ids: tuple[int, ...]
    start: int

    @property
    def is_answered(self) -> bool:
        return self.start < len(self.ids)


@dataclass(frozen=True, slots=True)
class Answering:
    """How a teacher answers prompts: at which `temperature` (0: greedily), `most` tokens each, drawn by `seed`."""

    temperature: float
    most: int
    seed: int


def read_lessons(model: Path, text: Path, length: int) -> list[Lesson]:
    """The lessons in the file `text`, of at most `length` tokens each, in the tokens of the folder `model`.

    A `.jsonl` file has on each line an object with `text` (all of it counts; cut where it is too long), `prompt` and
    perhaps `completion`, or `messages`: the completion, or the assistant's last message, is what counts, and a line
    without one is to be answered. Any other file is one text. Raises CalibrationUnusable, which names the line.
    """
    reader = _Reader(AutoTokenizer.from_pretrained(model), text, length)
    lessons = list(reader.lessons())
    if not lessons:
        raise CalibrationUnusable(f"{text} has nothing to learn from; it should have a text, or a line for each lesson")
    return lessons


def answer(
    teacher: Path, lessons: Sequence[Lesson], how: Answering, length: int, report: Report = silent
) -> list[Lesson]:
    """`lessons` with the answers of the model in `teacher` where they lack one, of `length` tokens in all at most.

    The same for the same seed. Raises SourceUnusable where the engine cannot run the teacher.
    """
    wanted = [index for index, lesson in enumerate(lessons) if not lesson.is_answered]
    answers = _generate(teacher, {index: lessons[index] for index in wanted}, how, length, report) if wanted else {}
    return [
        Lesson((*lesson.ids, *answers[index]), lesson.start) if index in answers else lesson
        for index, lesson in enumerate(lessons)
    ]


def _generate(
    teacher: Path, prompts: dict[int, Lesson], how: Answering, length: int, report: Report
) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {index: [] for index in prompts}
    try:
        engine = Engine.from_folder(teacher, EngineConfig(max_waiting=len(prompts), token_budget=2048))
        for index, lesson in prompts.items():
            most = min(how.most, length - len(lesson.ids))
            sampling = SamplingParams(temperature=how.temperature, max_tokens=most, seed=how.seed + index)
            engine.submit(Request(str(index), list(lesson.ids), sampling))
    except EngineError as error:
        raise SourceUnusable(teacher, f"cannot answer the prompts: {error}") from None
    done = 0
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise SourceUnusable(
                teacher, f"failed to answer lesson {output.failed[0].request_id}: {output.failed[0].message}"
            )
        for delta in output.deltas:
            answers[int(delta.request_id)].append(delta.token_id)
        ended = sum(delta.finish_reason is not None for delta in output.deltas)
        if ended:
            done += ended
            report(done, len(prompts), "answers")
    return answers


class _Reader:
    """One file, through one tokenizer."""

    def __init__(self, tokenizer: Any, path: Path, length: int) -> None:
        self._tokenizer, self._path, self._length = tokenizer, path, length
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def lessons(self) -> Iterator[Lesson]:
        try:
            content = self._path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationUnusable(f"{self._path} cannot be read ({error})") from None
        if self._path.suffix != ".jsonl":
            yield from self._pieces(self._ids(content))
            return
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield from self._of_line(line, number)

    def _of_line(self, line: str, number: int) -> Iterator[Lesson]:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        told = said if isinstance(said, dict) else {}
        if isinstance(told.get("text"), str):
            yield from self._pieces(self._ids(told["text"]) + self._end)
        elif isinstance(told.get("prompt"), str) and isinstance(told.get("completion", ""), str):
            prompt = list(self._tokenizer(told["prompt"])["input_ids"])
            completion = self._ids(told["completion"]) + self._end if "completion" in told else []
            yield self._whole(prompt, completion, number)
        elif isinstance(told.get("messages"), list) and told["messages"]:
            yield self._of_messages(told["messages"], number)
        else:
            raise self._wrong(number, 'should be a JSON object with "text", "prompt" or "messages"')

    def _of_messages(self, messages: list[Any], number: int) -> Lesson:
        answered = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
        asked = messages[:-1] if answered else messages
        prompt = self._rendered(asked, number, add_generation_prompt=True)
        if not answered:
            return self._whole(self._ids(prompt), [], number)
        whole = self._rendered(messages, number, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise self._wrong(number, "the chat template does not begin with the prompt; give prompt and completion")
        return self._whole(self._ids(prompt), self._ids(whole.removeprefix(prompt)), number)

    def _rendered(self, messages: list[Any], number: int, *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._wrong(number, f"its messages cannot be rendered ({error})") from None

    def _whole(self, prompt: list[int], completion: list[int], number: int) -> Lesson:
        least = len(prompt) + max(len(completion), 1)
        if not prompt or least > self._length:
            raise self._wrong(number, f"has {least} tokens with its answer, and may have 2 to {self._length}")
        return Lesson((*prompt, *completion), len(prompt))

    def _pieces(self, ids: list[int]) -> Iterator[Lesson]:
        for begin in range(0, len(ids), self._length):
            piece = ids[begin : begin + self._length]
            if len(piece) >= SHORTEST:
                yield Lesson(tuple(piece), 1)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _wrong(self, number: int, reason: str) -> CalibrationUnusable:
        return CalibrationUnusable(f"{self._path}, line {number}: {reason}")
