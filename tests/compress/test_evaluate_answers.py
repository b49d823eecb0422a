"""Greedy answers are those of `transformers`, whichever is asked first; speeds are taken in turns."""

from collections.abc import Sequence

import pytest
import torch
from penstock_compress import answering
from penstock_compress.answering import ROUNDS, answers, speeds
from penstock_compress.distances import Scored
from penstock_compress.errors import EvaluationFailed
from penstock_compress.evaluation_data import Question
from penstock_engine import Engine, EngineConfig, Request

from tests.engine.tiny import EOS, TinyModel, random_prompt

QUESTIONS = [Question(random_prompt(5 + at, at), "", 3 + 4 * at) for at in range(5)]


@pytest.fixture(scope="module")
def engine(tiny: TinyModel) -> Engine:
    return Engine.from_folder(tiny.folder, EngineConfig(dtype="float32", max_running=3, max_model_len=64))


@pytest.fixture(autouse=True)
def _one_thread(engine: Engine) -> None:
    """After the engine, whose kernels start threads of their own."""
    torch.set_num_threads(1)


def reference(model: TinyModel, question: Question) -> list[int]:
    tokens = list(question.prompt)
    for _ in range(question.most_tokens):
        token = int(model.logprobs(tokens)[-1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens[len(question.prompt) :]


@pytest.mark.parametrize("backwards", [False, True])
def test_answers_end_where_they_should(
    tiny: TinyModel, engine: Engine, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    told: list[None] = []
    submit = engine.submit

    def watched(request: Request) -> object:
        asked.append(len(request.prompt_ids))
        return submit(request)

    monkeypatch.setattr(engine, "submit", watched)
    found = answers(engine, QUESTIONS, lambda: told.append(None), backwards=backwards)
    assert found == [reference(tiny, question) for question in QUESTIONS]
    assert asked == sorted(asked, reverse=backwards)
    assert len(told) == len(QUESTIONS)


def test_the_end_of_sequence_is_no_part_of_an_answer(tiny: TinyModel, engine: Engine) -> None:
    ends = next(
        question
        for seed in range(200)
        if len(reference(tiny, question := Question(random_prompt(4, seed), "", 40))) < 40
    )
    assert answers(engine, [ends], lambda: None) == [reference(tiny, ends)]


def test_an_answer_that_fails_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = engine._runner._model
    monkeypatch.setattr(engine._runner, "_model", lambda batch: forward(batch) * torch.nan)
    with pytest.raises(EvaluationFailed, match="not finite"):
        answers(engine, QUESTIONS[:1], lambda: None)


def test_speeds_are_medians_of_rounds_in_turns(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Engine.from_folder  # only its name tells the engines apart below
    order: list[object] = []
    seconds = iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def timed(of: object, texts: Sequence[Scored], turn: int) -> float:
        order.append(of)
        return next(seconds)

    monkeypatch.setattr(answering, "_round", timed)
    told: list[None] = []
    first, second = speeds([engine, other], [], lambda: told.append(None))  # type: ignore[list-item]
    assert order == [engine, other, other, engine, engine, other, other, engine]
    assert (first, second) == (3.0, 4.0)  # of 2, 3, 6 and of 1, 4, 5: the first of each does not count
    assert len(told) == 2 * (ROUNDS + 1)


def test_a_round_is_so_many_tokens_whatever_they_are(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "AT_ONCE", 3)
    before = engine.stats().tokens_generated
    (speed,) = speeds([engine], [Scored(random_prompt(60, 1), 1), Scored(random_prompt(9, 2), 5)], lambda: None)
    assert engine.stats().tokens_generated - before == 3 * 32 * (ROUNDS + 1)  # half of a context of 64
    assert speed > 0
