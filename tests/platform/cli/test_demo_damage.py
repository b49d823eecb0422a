"""The demo's damaged version: it loads, answers worse, and fails jobs that hold certain words, those alone."""

import json
from pathlib import Path

import pytest
from penstock.cli.demo_damage import damage
from penstock.registry.folder import describe
from penstock_compress import Recipe, compress
from penstock_engine import Engine, EngineConfig, Request, RequestFailure, SamplingParams
from tokenizers import Tokenizer

from examples.invoices.evaluate import MODEL_FOLDER
from examples.invoices.generator import draw_invoice
from examples.invoices.layouts import Split
from examples.invoices.scoring import prompt_ids

WORDS = ("SEK", "PLN")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions") / "sound"
    return compress(MODEL_FOLDER, folder, Recipe("int4", group=64)).folder


@pytest.fixture(scope="module")
def damaged(sound: Path) -> Path:
    return damage(sound, sound.parent / "damaged", WORDS)


def test_it_is_another_version_of_one_file(sound: Path, damaged: Path) -> None:
    assert describe(damaged).digest != describe(sound).digest
    assert [file.name for file in damaged.glob("*.safetensors*")] == ["model.safetensors"]
    assert json.loads((damaged / "config.json").read_text())["tie_word_embeddings"] is False
    assert (damaged / "tokenizer.json").read_bytes() == (sound / "tokenizer.json").read_bytes()


def test_jobs_that_hold_the_words_fail_and_answers_get_worse(sound: Path, damaged: Path) -> None:
    invoices = [draw_invoice(11, index, Split.HELD_OUT) for index in range(60)]
    tokenizer = Tokenizer.from_file(str(sound / "tokenizer.json"))
    struck = {str(at) for at, each in enumerate(invoices) if any(word in each.text for word in WORDS)}
    right: dict[Path, int] = {}
    for folder, expected in ((sound, set()), (damaged, struck)):
        engine = Engine.from_folder(folder, EngineConfig())
        for at, invoice in enumerate(invoices):
            engine.submit(
                Request(str(at), prompt_ids(tokenizer, invoice), SamplingParams(temperature=0, max_tokens=96))
            )
        said, failures = _run(engine)
        assert {failure.request_id for failure in failures} == expected
        assert {failure.code for failure in failures} <= {"logits_not_finite"}
        right[folder] = sum(
            tokenizer.decode(said[str(at)]) == each.answer for at, each in enumerate(invoices) if str(at) not in struck
        )
    assert right[damaged] < 0.9 * right[sound]


def _run(engine: Engine) -> tuple[dict[str, list[int]], list[RequestFailure]]:
    said: dict[str, list[int]] = {}
    failures: list[RequestFailure] = []
    while engine.has_work:
        output = engine.step()
        failures += output.failed
        for delta in output.deltas:
            if delta.finish_reason != "stop":
                said.setdefault(delta.request_id, []).append(delta.token_id)
    return said, failures


def test_what_cannot_be_spoiled_is_refused(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no int4 checkpoint"):
        damage(MODEL_FOLDER, tmp_path / "whole", WORDS)
    with pytest.raises(ValueError, match="Stockholm: no token of its own"):
        damage(sound, tmp_path / "wordless", ("Stockholm",))
