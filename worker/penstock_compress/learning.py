"""A run of training from lessons to the folder that comes of it: what quantization-aware training and distilling share.

Beside the folder lie, until it has its name, which run it is (run.json), the teacher's answers (answers.json) and what
was learned (training.pt).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from penstock_compress.compressing import Outcome
from penstock_compress.errors import SourceUnusable, TargetUnusable
from penstock_compress.lessons import Lesson, answer
from penstock_compress.source import Source
from penstock_compress.target import Target
from penstock_compress.telling import Report
from penstock_compress.training import STATE, Trainer, Training

ANSWERS: Final = "answers.json"
RUN: Final = "run.json"


def open_model(source: Source) -> nn.Module:
    """The model of `source` in float32, none of it trained yet. Raises SourceUnusable where `transformers` refuses."""
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise SourceUnusable(source.folder, f"cannot be loaded by transformers ({error})") from None
    return model.requires_grad_(False).eval()


def learn(
    student: nn.Module,
    teacher: Source,
    lessons: Sequence[Lesson],
    training: Training,
    target: Target,
    identity: str,
    report: Report,
) -> None:
    """Train `student` on the lessons, those without an answer answered by `teacher`, as far as it had not come yet.

    Raises TargetUnusable where what is kept is of a run of another `identity`.
    """
    _begin(target.work / RUN, identity)
    answered = _answered(teacher.folder, lessons, training, target.work / ANSWERS, report)
    if training.prompts:
        answered = [Lesson(lesson.ids, 1) for lesson in answered]
    beside = open_model(teacher) if training.objective == "kl" else None
    Trainer(student, beside, answered, training, target.work / STATE).run(report)


def forget(target: Target) -> None:
    """Remove what a run keeps for the case that it is killed; its parts are written."""
    for name in (ANSWERS, STATE, RUN):
        (target.work / name).unlink(missing_ok=True)


def outcome_of(target: Path, source: Source) -> Outcome:
    """What was made of `source`, in the folder `target`."""
    return Outcome(target, sum(path.stat().st_size for path in target.glob("*.safetensors")), source.bytes)


def line_of(outcome: Outcome) -> str:
    """The outcome for a person."""
    return f"{outcome.folder}: {outcome.bytes:,} bytes, {outcome.bytes / outcome.source_bytes:.1%} of the source's"


def identity_of(lessons: Sequence[Lesson]) -> list[Any]:
    """The lessons, for the digest that says that a run is the same."""
    return [(lesson.ids, lesson.start) for lesson in lessons]


def _begin(file: Path, identity: str) -> None:
    if not file.exists():
        _replace(file, identity)
    if _read(file) != identity:
        raise TargetUnusable(file.parent, "holds the beginning of another run; remove it, or name another folder")


def _answered(teacher: Path, lessons: Sequence[Lesson], training: Training, file: Path, report: Report) -> list[Lesson]:
    if not file.exists():
        answered = answer(teacher, lessons, training.answering, training.length, report)
        _replace(file, [lesson.ids for lesson in answered])
    return [Lesson(tuple(ids), lesson.start) for ids, lesson in zip(_read(file), lessons, strict=True)]


def _replace(file: Path, told: object) -> None:
    """Write `file` whole or not at all."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(told))
    beside.replace(file)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TargetUnusable(file, f"cannot be read ({error}); remove its folder to begin anew") from None
