"""Lines that ask for structure: their grammars are compiled while nothing is locked."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from llguidance import LLTokenizer
from penstock.batches.models import Batch
from penstock.batches.tending import BatchTender
from penstock.db import Database
from penstock.registry import vocabulary
from penstock.registry.models import Deployment
from penstock.registry.vocabulary import Vocabulary
from sqlalchemy import select

from tests.factories import DEMO_MODEL, WordCounter
from tests.platform.batches.conftest import Bench, native


class Words(WordCounter):
    """Keeps its vocabulary, and so the verdicts on grammars, as the real counter does."""

    def __init__(self) -> None:
        self._known = Vocabulary.from_folder(DEMO_MODEL, 0)

    def vocabulary(self, deployment: Deployment) -> Vocabulary:
        return self._known


class Watched:
    """The compiler of grammars; it looks each time whether any batch is locked."""

    def __init__(self, database: Database) -> None:
        self._database, self._compile = database, vocabulary._problem
        self.unlocked: list[bool] = []

    def __call__(self, tokenizer: LLTokenizer, kind: str, source: str | Sequence[str]) -> str:
        with self._database.transaction() as session:
            free = session.scalars(select(Batch.id).with_for_update(skip_locked=True)).all()
        self.unlocked.append(len(free) == 1)
        return self._compile(tokenizer, kind, source)


def held_to(number: int, regex: str) -> dict[str, object]:
    body = {
        "model": "tiny",
        "input": {"prompt": "a b"},
        "params": {"response_format": {"type": "regex", "regex": regex}},
    }
    return native(number, body=body)


def test_grammars_are_compiled_before_a_batch_is_locked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(bench.workshop.database)
    monkeypatch.setattr(vocabulary, "_problem", watched)
    structured = replace(bench, tender=BatchTender(replace(bench.workshop, prompts=Words())))
    batch_id = structured.make([held_to(1, "a+"), held_to(2, "b+"), held_to(3, "(?<=a)b"), native(4)])
    done = structured.run_to_end(batch_id)
    assert (done["lines"]["succeeded"], done["lines"]["failed"]) == (3, 1)
    (failed,) = structured.content(done["error_file_id"])
    assert (failed["line"], failed["error"]["code"]) == (3, "validation_failed")
    assert watched.unlocked == [True] * 3
