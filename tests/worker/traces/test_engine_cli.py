"""`penstock engine trace`, called as people call it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from penstock.cli import main
from penstock_engine.trace import StepTrace, read_trace

from tests.worker.traces.steps import HEADER, preempted_once

LOAD = ("--requests", "5", "--prompt", "8", "--output", "6", "--threads", "1", "--kv-pages", "64")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["engine", "trace", *map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    trace = StepTrace(HEADER, 10)
    trace._records.extend(preempted_once().records)
    path = tmp_path / "dep_1-7.jsonl"
    trace.export(path)
    return path


def test_a_load_is_run_kept_and_drawn(model_folder: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "out.svg", tmp_path / "kept.jsonl"
    result = call("--model", model_folder, "-o", out, "--save", kept, *LOAD)
    assert result.exit_code == 0, result.output
    assert "requests         5: 5 finished, 0 failed, 0 aborted" in result.output
    records = read_trace(kept).records
    assert sum(reason == "length" for each in records for reason in each.ended.values()) == 5
    again = tmp_path / "again.svg"
    assert call(kept, "-o", again).exit_code == 0
    assert again.read_text().replace(str(kept), str(model_folder)) == out.read_text()


def test_of_a_folder_the_newest_is_drawn(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    result = call(source.parent, "-o", out)
    assert result.exit_code == 0, result.output
    assert "preemptions      1" in result.output
    assert out.read_text().startswith("<svg")


def test_the_last_steps_alone(source: Path, tmp_path: Path) -> None:
    result = call(source, "--last", 2, "-o", tmp_path / "out.svg")
    assert "steps            2 in 2.00 s" in result.output
    assert "preemptions      0" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either SOURCE"),
        (["SOURCE", "--model", "FOLDER"], "give either SOURCE"),
        (["SOURCE", "--save", "x"], "--save keeps the trace of a load"),
        (["--model", "FOLDER"], "config.json"),
        (["FOLDER"], "holds no trace"),
        (["BROKEN"], "line 1"),
        (["EMPTY"], "holds no step"),
        (["SOURCE", "-o", "FOLDER/none/out.svg"], "No such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    source: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "broken.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").write_text(HEADER.line)
    names = {"SOURCE": source, "FOLDER": folder, "BROKEN": tmp_path / "broken.jsonl", "EMPTY": tmp_path / "empty.jsonl"}
    for name, path in names.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
