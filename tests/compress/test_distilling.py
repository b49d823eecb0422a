"""Distilling: lessons as they are read and answered, the loss, the order of batches, and a student that learns."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from penstock_compress.distilling import check_same_tokens, distil
from penstock_compress.errors import CalibrationUnusable, InvalidRecipe, SourceUnusable
from penstock_compress.lessons import Answering, Lesson, answer, read_lessons
from penstock_compress.pruning import Cut, prune
from penstock_compress.training import IGNORED, Batch, Batches, Training, loss_of
from penstock_compress.training_cli import distil as command
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.compress.conftest import all_tensors
from tests.engine.tiny import TinyModel, make_tiny

MODEL = Path("examples/invoices/model")
SHORT = Training(steps=60, batch=8, rate=1e-2, prompts=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them; the comparison is to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student(tiny: TinyModel, tokens: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without half of its heads and channels."""
    folder = tmp_path_factory.mktemp("student") / "pruned"
    prune(tiny.folder, folder, Cut(keep_ffn=0.5, keep_heads=0.5), tokens)
    return folder


def lessons_of(tokens: Tensor) -> list[Lesson]:
    return [Lesson(tuple(row), 8) for row in tokens.tolist()]


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def divergence(reference: Any, folder: Path, tokens: Tensor) -> float:
    with torch.inference_mode():
        one, two = (model(tokens).logits.log_softmax(-1) for model in (reference, loaded(folder)))
    return float((one.exp() * (one - two)).sum(-1).mean())


def test_a_student_comes_nearer_and_a_kill_changes_nothing(
    tiny: TinyModel, student: Path, tmp_path: Path, tokens: Tensor
) -> None:
    def killed(done: int, of: int, what: str) -> None:
        assert of == 60
        if done == 55:
            raise KeyboardInterrupt

    outcome = distil(student, tiny.folder, tmp_path / "whole", SHORT, lessons_of(tokens))
    assert divergence(tiny.reference, outcome.folder, tokens) < 0.3 * divergence(tiny.reference, student, tokens)
    with pytest.raises(KeyboardInterrupt):
        distil(student, tiny.folder, tmp_path / "again", SHORT, lessons_of(tokens), killed)
    distil(student, tiny.folder, tmp_path / "again", SHORT, lessons_of(tokens))
    whole, again, before = (all_tensors(folder) for folder in (tmp_path / "whole", tmp_path / "again", student))
    assert whole.keys() == again.keys() == before.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(whole[name].dtype == before[name].dtype for name in whole)
    assert not any(torch.equal(whole[name], before[name]) for name in whole)
    assert sorted(path.name for path in outcome.folder.iterdir()) == sorted(
        path.name for path in (tmp_path / "again").iterdir()
    )
    assert json.loads((outcome.folder / "compression.json").read_text())["recipe"]["method"] == "distil"


def test_answers_are_the_teachers_own_and_the_same_again(tiny: TinyModel) -> None:
    asked = [Lesson((9, 10, 11), 3), Lesson((12, 13), 1), Lesson(tuple(range(20, 29)), 9)]
    first = answer(tiny.folder, asked, Answering(temperature=0, most=6, seed=1), 12)
    assert first[1] is asked[1]
    with torch.inference_mode():
        for lesson, most in ((first[0], 6), (first[2], 3)):
            prompt = torch.tensor([lesson.ids[: lesson.start]])
            said = tiny.reference.generate(prompt, max_new_tokens=most, do_sample=False)[0].tolist()
            assert list(lesson.ids) == said
    drawn = [answer(tiny.folder, asked, Answering(1.0, 6, seed), 12) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_students_learn_prompts_answered_by_the_teacher(
    tiny: TinyModel, student: Path, target: Path, tokens: Tensor
) -> None:
    """The answers are kept beside the folder until it is done: a run that goes on does not ask again."""
    asked = [Lesson(tuple(row[:6]), 6) for row in tokens.tolist()]

    def killed(done: int, of: int, what: str) -> None:
        if what.startswith("loss"):
            raise KeyboardInterrupt

    course = Training(steps=2, batch=4, most=5)
    with pytest.raises(KeyboardInterrupt):
        distil(student, tiny.folder, target, course, asked, killed)
    kept = json.loads((target.with_name("smaller.partial") / "answers.json").read_text())
    assert [ids[:6] for ids in kept] == [list(lesson.ids) for lesson in asked]
    assert all(6 < len(ids) <= 11 for ids in kept)
    told: list[str] = []
    distil(student, tiny.folder, target, course, asked, lambda done, of, what: told.append(what))
    assert "answers" not in told


def test_another_vocabulary_is_refused(tiny: TinyModel, tmp_path: Path, tokens: Tensor) -> None:
    other = make_tiny(tmp_path / "other", "llama", vocab_size=150)
    with pytest.raises(SourceUnusable, match="a vocabulary of 150"):
        distil(other.folder, tiny.folder, tmp_path / "none", SHORT, lessons_of(tokens))
    told = json.loads((MODEL / "tokenizer.json").read_text())
    ids = told["model"]["vocab"]
    ids["er"], ids["en"] = ids["en"], ids["er"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(told))
    shutil.copy(MODEL / "tokenizer_config.json", tmp_path / "other")
    check_same_tokens(MODEL, MODEL)
    with pytest.raises(SourceUnusable, match="has other tokens"):
        check_same_tokens(tmp_path / "other", MODEL)


def test_experts_that_run_otherwise_than_they_are_stored_are_refused(tmp_path: Path, tokens: Tensor) -> None:
    mixture = make_tiny(tmp_path / "experts", "mixtral")
    with pytest.raises(SourceUnusable, match="is not stored as it runs"):
        distil(mixture.folder, mixture.folder, tmp_path / "none", SHORT, lessons_of(tokens))


def test_the_loss_is_the_mean_divergence_of_what_counts(tiny: TinyModel, student: Path) -> None:
    lessons = [Lesson((9, 10, 11, 12, 13), 3), Lesson((20, 21, 22), 2)]
    batch, model = Batch.of(lessons), loaded(student)
    assert batch.targets.tolist() == [[IGNORED, IGNORED, 12, 13], [IGNORED, 22, IGNORED, IGNORED]]
    for temperature in (1.0, 2.0):
        pairs = []
        for ids, places in ((lessons[0].ids, (2, 3)), (lessons[1].ids, (1,))):
            with torch.inference_mode():
                both = [one(torch.tensor([ids])).logits[0] / temperature for one in (tiny.reference, model)]
            pairs += [[logits[place].log_softmax(-1) for logits in both] for place in places]
        expected = sum(float((p.exp() * (p - q)).sum()) for p, q in pairs) / 3 * temperature**2
        loss = loss_of(model, tiny.reference, batch, Training(temperature=temperature))
        assert loss.item() == pytest.approx(expected, rel=1e-4)
    surprise = loss_of(model, None, batch, Training(objective="cross-entropy")).item()
    with torch.inference_mode():
        rows = [model(torch.tensor([lesson.ids])).logits[0].log_softmax(-1) for lesson in lessons]
    assert surprise == pytest.approx(-float(rows[0][2, 12] + rows[0][3, 13] + rows[1][1, 22]) / 3, rel=1e-4)


def test_every_lesson_has_its_turn_in_each_epoch_and_a_step_is_a_function_of_its_number() -> None:
    lessons = [Lesson((number, number % 7), 1) for number in range(50)]
    batches = Batches(lessons, 10, seed=3)
    epochs = [[batches.at(step).ids[:, 0].tolist() for step in range(5 * epoch, 5 * epoch + 5)] for epoch in (0, 1)]
    assert all(sorted(chain.from_iterable(epoch)) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Batches(lessons, 10, seed=3).at(7).ids[:, 0].tolist() == epochs[1][2]
    assert Batches(lessons, 10, seed=4).at(7).ids[:, 0].tolist() != epochs[1][2]
    with pytest.raises(CalibrationUnusable, match="50 lessons for a batch of 51"):
        Batches(lessons, 51, seed=0)


def test_the_rate_rises_and_falls_to_zero() -> None:
    course = Training(steps=100, rate=1.0, warmup=0.1)
    assert [course.rate_at(step) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert course.rate_at(55) == pytest.approx(0.5)
    assert course.rate_at(99) < 0.001


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("steps", 0),
        ("batch", 0),
        ("most", 0),
        ("rate", 0.0),
        ("rate", float("nan")),
        ("temperature", 0.0),
        ("weight_decay", -1.0),
        ("sampled", -0.1),
        ("warmup", 1.0),
        ("length", 1),
        ("objective", "magic"),
    ],
)
def test_a_course_that_cannot_be_names_its_field(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidRecipe) as refused:
        replace(Training(), **{field: wrong})
    assert refused.value.field == field


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(*lines: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    return write


def test_lines_of_every_form_become_lessons(written: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    said = {"role": "user", "content": "Total 1"}, {"role": "assistant", "content": "one"}
    path = written(
        {"text": "Total due"},
        {"prompt": "Total", "completion": " due"},
        "",
        {"prompt": "Total", "expected": "due"},
        {"messages": list(said)},
        {"messages": [said[0]]},
    )
    whole, completed, asked, answered, waiting = read_lessons(MODEL, path, 64)
    end = tokenizer.eos_token_id
    assert (whole.ids, whole.start) == ((*tokenizer.encode("Total due"), end), 1)
    assert tokenizer.decode(completed.ids[completed.start :]) == " due<|end|>"
    assert not asked.is_answered
    assert not waiting.is_answered
    assert tokenizer.decode(answered.ids[answered.start :]) == "one<|end|>"
    assert waiting.ids == answered.ids[: answered.start]
    assert tokenizer.decode(waiting.ids) == "<|user|>Total 1<|assistant|>"


def test_long_texts_are_cut(written: Any) -> None:
    for path in (written({"text": "Total 12.50 EUR\n" * 9}), written("Total 12.50 EUR\n" * 9, name="plain.txt")):
        lessons = read_lessons(MODEL, path, 20)
        assert {len(lesson.ids) for lesson in lessons[:-1]} == {20}
        assert all(2 <= len(lesson.ids) <= 20 for lesson in lessons)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("no JSON", "should be a JSON object"),
        ({"other": 1}, "should be a JSON object"),
        ({"prompt": 3}, "should be a JSON object"),
        ({"prompt": ""}, "may have 2 to 16"),
        ({"prompt": "Total " * 40}, "may have 2 to 16"),
        ({"messages": [{"content": 3}]}, "cannot be rendered"),
    ],
)
def test_a_line_that_is_no_lesson_is_named(written: Any, line: Any, word: str) -> None:
    with pytest.raises(CalibrationUnusable, match=f"line 2: .*{word}"):
        read_lessons(MODEL, written({"text": "Total due"}, line), 16)


def test_nothing_to_learn_from_is_said(written: Any, tmp_path: Path) -> None:
    with pytest.raises(CalibrationUnusable, match="nothing to learn"):
        read_lessons(MODEL, written(""), 16)
    with pytest.raises(CalibrationUnusable, match="cannot be read"):
        read_lessons(MODEL, tmp_path / "none.txt", 16)


def test_one_command_distils_and_tells_a_program(written: Any, tmp_path: Path) -> None:
    data, out = (
        written(*[{"prompt": f"<|user|>Total {number}.50<|assistant|>"} for number in range(4)]),
        tmp_path / "out",
    )
    asked = [str(MODEL), "--teacher", str(MODEL), "--out", str(out), "--data", str(data), "--progress", "json"]
    result = CliRunner().invoke(command, [*asked, "--steps", "2", "--batch", "2", "--most", "8"])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert (events[-1]["event"], events[-1]["recipe"]["method"]) == ("done", "distil")
    assert loaded(out).config.num_hidden_layers == 4
    result = CliRunner().invoke(command, [*asked, "--steps", "2", "--batch", "9"])
    failed = json.loads(result.stdout.splitlines()[-1])
    assert (failed["event"], failed["code"]) == ("failed", "target_unusable")  # a folder that another run has made
