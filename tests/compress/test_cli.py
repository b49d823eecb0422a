"""`penstock quantize`."""

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import penstock_compress.telling as telling_module
import pytest
from click.testing import CliRunner
from penstock_compress.cli import quantize
from penstock_compress.errors import Stopped
from penstock_compress.telling import STOPPED, telling

from tests.engine.tiny import TinyModel

MODEL = "examples/invoices/model"


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(quantize, list(arguments))
    return result.exit_code, result.output


def test_a_model_becomes_smaller_by_one_command(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("# Date Issued => 17.06.2029\n# Invoice Total => EUR 4085.51\n" * 200)
    out = str(tmp_path / "int4")
    calibrated = ("--method", "gptq", "--calibration", str(text), "--samples", "4", "--length", "64")
    status, said = call(MODEL, "--out", out, "--scheme", "int4", "--group", "64", *calibrated)
    assert status == 0, said
    assert "of the source's" in said
    assert (tmp_path / "int4" / "tokenizer.json").is_file()
    assert (tmp_path / "int4" / "compression.json").is_file()


def test_schemes_are_listed() -> None:
    status, said = call("--schemes")
    assert status == 0
    assert "fp8-block" in said
    assert "mixed" in said


def test_what_is_wrong_is_said_in_a_line(tiny: TinyModel, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    for arguments, word in [
        ((str(tiny.folder), *out, "--scheme", "int5"), "must be one of"),
        ((str(tiny.folder), *out, "--method", "gptq"), "needs --calibration"),
        ((str(tmp_path), *out), "config.json"),
    ]:
        status, said = call(*arguments)
        assert status != 0
        assert word in said
        assert "Traceback" not in said


def events_of(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_a_program_is_told_each_part_and_what_was_made(tiny: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (str(tiny.folder), "--out", str(out), "--scheme", "int8", "--progress", "json")
    status, said = call(*arguments)
    assert status == 0, said
    *steps, end = events_of(said)
    assert [(step["event"], step["done"], step["of"]) for step in steps] == [("progress", n, 4) for n in (1, 2, 3, 4)]
    assert {step["what"] for step in steps} == {"block 0", "block 1", "block 2"}
    assert end["event"] == "done"
    assert end["out"] == str(out)
    assert end["recipe"]["scheme"] == "int8"
    assert end["files"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir()}
    assert end["bytes"] == sum(path.stat().st_size for path in out.glob("*.safetensors")) < end["source_bytes"]
    assert len(end["layers"]) == 3 * 7
    assert events_of(call(*arguments)[1]) == [end]  # made already: told again


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        (("--scheme", "int5"), "invalid_recipe", "scheme"),
        (("--method", "gptq"), "calibration_unusable", "calibration"),
        (("--scheme", "mixed"), "invalid_recipe", "target_bytes"),
        (("--kv", "fp8"), "calibration_unusable", "calibration"),
    ],
)
def test_a_program_is_told_what_failed(
    tiny: TinyModel, tmp_path: Path, arguments: tuple[str, ...], code: str, field: str
) -> None:
    status, said = call(str(tiny.folder), "--out", str(tmp_path / "out"), "--progress", "json", *arguments)
    (failed,) = events_of(said)
    assert status == 1
    assert (failed["event"], failed["code"], failed["field"]) == ("failed", code, field)
    assert failed["message"]


def test_a_size_that_nothing_has_is_told_with_the_least_one(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("# Date Issued => 17.06.2029\n# Invoice Total => EUR 4085.51\n" * 200)
    calibrated = ("--calibration", str(text), "--samples", "2", "--length", "32", "--progress", "json")
    status, said = call(MODEL, "--out", str(tmp_path / "x"), "--scheme", "mixed", "--target-bytes", "5%", *calibrated)
    (failed,) = events_of(said)
    assert status == 1
    assert (failed["code"], failed["field"]) == ("budget_too_small", "target_bytes")
    assert re.search(r"the smallest has \d{3},\d{3}$", failed["message"])


def test_what_nobody_foresaw_is_told_and_rises(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), telling("json"):
        _ = 1 / 0
    (failed,) = events_of(capsys.readouterr().out)
    assert (failed["code"], failed["message"]) == ("unexpected", "ZeroDivisionError: division by zero")


def test_sigterm_ends_a_run_that_the_same_command_goes_on_with(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = (str(tiny.folder), "--out", str(out), "--scheme", "int8", "--progress", "json")
    say = telling_module._say

    def say_and_be_ended(**told: Any) -> None:
        say(**told)
        if told.get("done") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(telling_module, "_say", say_and_be_ended)
    status, said = call(*arguments)
    assert status == STOPPED
    assert [told.get("code") or told["done"] for told in events_of(said)] == [1, 2, "stopped"]
    assert not out.exists()
    monkeypatch.setattr(telling_module, "_say", say)
    status, said = call(*arguments)
    assert status == 0, said
    assert [told.get("done") for told in events_of(said)] == [2, 3, 4, None]


def test_the_signal_stops_what_runs_and_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, telling("json"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == STOPPED
    assert events_of(capsys.readouterr().out)[0]["code"] == Stopped.code
    assert signal.getsignal(signal.SIGTERM) == before
