"""Distilling: a small model learns to say next what a large one of the same vocabulary would."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import AutoTokenizer

from penstock_compress.compressing import OUTSIDE, Outcome
from penstock_compress.errors import SourceUnusable
from penstock_compress.learning import forget, identity_of, learn, open_model, outcome_of
from penstock_compress.lessons import Lesson
from penstock_compress.source import Source
from penstock_compress.target import Target, finished
from penstock_compress.telling import Report, silent
from penstock_compress.training import Training, digest_of


def distil(
    student: Path,
    teacher: Path,
    target: Path,
    training: Training,
    lessons: Sequence[Lesson],
    report: Report = silent,
) -> Outcome:
    """Write what the model at `student` has learned from that at `teacher` to the folder `target`, not there yet.

    All of the student is trained, in float32, and stored in the dtypes that it had; lessons that bring a prompt alone
    are answered by the teacher. A run that was killed is gone on with by the same call and ends in the same bytes.
    Memory: teacher and student in float32, and AdamW's two numbers for each of the student's. Raises CompressError.
    """
    opened, taught_by = Source(student), Source(teacher)
    _same_width(opened, taught_by)
    told = {"recipe": {"method": "distil", **training.as_dict(), "teacher_sha256": taught_by.digest}}
    identity = digest_of("distil", told, opened.digest, identity_of(lessons))
    if not finished(target, identity):
        work = Target(target, identity)
        if len(work.done) <= opened.blocks:
            _train_into(work, identity, opened, taught_by, training, lessons, report)
        forget(work)
        work.finish(student, opened.config, {**told, "source_sha256": opened.digest, "source_bytes": opened.bytes})
    return outcome_of(target, opened)


def check_same_tokens(student: Path, teacher: Path) -> None:
    """Raises SourceUnusable where the two folders' tokenizers do not give the same tokens the same ids."""
    one, other = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (student, teacher))
    if one != other:
        raise SourceUnusable(student, f"has other tokens than {teacher}; a student has to have its teacher's tokenizer")


def _same_width(student: Source, teacher: Source) -> None:
    sizes = [source.config.get("vocab_size") for source in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise SourceUnusable(
            student.folder,
            f"has a vocabulary of {sizes[0]} and its teacher one of {sizes[1]}; they have to be the same",
        )


def _train_into(
    work: Target,
    identity: str,
    student: Source,
    teacher: Source,
    training: Training,
    lessons: Sequence[Lesson],
    report: Report,
) -> None:
    model = open_model(student).requires_grad_(True)
    _named_as_stored(model, student)
    learn(model, teacher, lessons, training, work, identity, report)
    parts = {OUTSIDE: student.outside()}
    parts |= {f"block-{index:04}": student.block_names(index) for index in range(student.blocks)}
    trained = model.state_dict()
    for part, names in parts.items():
        if part not in work.done:
            before = student.read(names)
            work.write(part, {name: trained[name].to(tensor.dtype).contiguous() for name, tensor in before.items()}, [])


def _named_as_stored(model: nn.Module, student: Source) -> None:
    lacking = set(student.names) - set(model.state_dict())
    if lacking:
        raise SourceUnusable(student.folder, f"is not stored as it runs ({min(lacking)}), and cannot be trained")
