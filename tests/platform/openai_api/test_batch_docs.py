"""The examples of docs/batches.md run, one after the other as they stand there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from penstock.batches.telling import BatchEvent
from penstock.cli import main

from tests.conftest import ROOT
from tests.platform.openai_api.conftest import House
from tests.platform.openai_api.tending import tended

PAGE = (ROOT / "docs/batches.md").read_text()


def test_every_example_runs(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_URL", house.url)
    monkeypatch.setenv("PENSTOCK_API_KEY", house.key)
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    scope: dict[str, Any] = {"__name__": "examples"}
    with tended(house):
        for example in examples:
            text = example.replace("http://127.0.0.1:8080", house.url).replace("psk_…", house.key)
            exec(text.replace("invoice-extractor", "tiny"), scope)
        said = capsys.readouterr().out
        shell = run_shell(scope["batch"].id)
    scope["client"].close()
    scope["openai"].close()

    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().split("\n")[:-1]]
    assert sorted(answer["custom_id"] for answer in answers) == [f"invoice-{number}" for number in range(1, 6)]
    assert said.startswith("completed 5 of 5\n")
    for answer in answers:  # what the model says may hold line ends
        assert f"\n{answer['custom_id']} {text_of(answer)}\n" in said
    assert [exit_code for exit_code, _ in shell] == [0, 0, 0, 0]
    assert "completed" in shell[1][1]
    assert shell[2][1].count("\n") == 5


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["response"]["body"]["choices"][0]["message"]["content"]
    return text


def run_shell(batch_id: str) -> list[tuple[int, str]]:
    """The page's commands, each with its exit status and output."""
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    calls = [line.replace("batch_…", batch_id).split()[1:] for line in block.splitlines()]
    results = [CliRunner().invoke(main, call) for call in calls]
    return [(result.exit_code, result.stdout) for result in results]


def test_every_event_is_documented() -> None:
    assert {event.value for event in BatchEvent} == set(re.findall(r"`(batch\.[a-z_]+)`", PAGE))
