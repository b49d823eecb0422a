"""`penstock quantize`."""

from pathlib import Path

from click.testing import CliRunner
from penstock_compress.cli import quantize

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
