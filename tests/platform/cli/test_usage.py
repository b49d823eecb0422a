"""Calls that are wrong, and a terminal that must not be steered: no server is needed."""

from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from penstock.cli.options import json_assignment, moment
from penstock.cli.render import printable, write_text
from penstock.clock import utc_now
from rich.console import Console

from tests.platform.cli.conftest import Call


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["submit", "x"], "--model"),
        (["submit", "-m", "tiny", "x", "-f", __file__], "one of PROMPT, --file and --messages"),
        (["submit", "-m", "tiny", "x", "--watch", "--wait"], "--watch follows one job"),
        (["submit", "-m", "tiny", "-f", __file__, "-f", __file__, "--watch"], "--watch follows one job"),
        (["submit", "-m", "tiny", "x", "--deadline", "soon"], "neither a time such as"),
        (["submit", "-m", "tiny", "x", "--deadline", "2030-01-01T00:00:00"], "time zone"),
        (["submit", "-m", "tiny", "x", "--metadata", "novalue"], "must read name=value"),
        (["submit", "-m", "tiny", "x", "--webhook-event", "job.failed"], "--webhook-event needs --webhook"),
        (["submit", "-m", "tiny", "x", "--system", "s"], "--system needs --chat"),
        (["submit", "-m", "tiny", "-f", "/no/such/file"], "/no/such/file"),
        (["submit", "-m", "tiny", "x", "--regex", "a", "--choice", "b"], "one of --json-schema, --regex, --choice"),
        (["submit", "-m", "tiny", "x", "--logit-bias", "17=much"], "'much' is no number"),
        (["list", "--status", "lost"], "'lost' is not one of 'queued'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["get"], "Missing argument"),
    ],
)
def test_a_wrong_call_says_what_would_be_right_and_ends_with_2(call: Call, arguments: list[str], hint: str) -> None:
    result = call(*arguments, *(["--api-key", "psk_x"] if arguments[0] in ("submit", "list") else []))
    assert result.exit_code == 2, result.output
    assert hint in result.stderr


def test_a_missing_key_names_the_variable(call: Call) -> None:
    result = call("get", "job_1")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no API key: set PENSTOCK_API_KEY")


@pytest.mark.parametrize("command", ["web", "control", "migrate", "keys list"])
def test_missing_settings_name_every_variable(call: Call, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DATABASE_URL", raising=False)
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "nonsense")
    result = call(*command.split())
    assert result.exit_code == 2
    assert "PENSTOCK_DATABASE_URL" in result.stderr
    assert "PENSTOCK_REDIS_URL" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "hint"), [(b"{", "is not JSON"), (b"[]", "must hold a JSON schema"), (b"\xff", "UTF-8")]
)
def test_schemas_that_are_none(call: Call, tmp_path: Path, content: bytes, hint: str) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(content)
    result = call("submit", "-m", "tiny", "x", "--json-schema", str(file), "--api-key", "psk_x")
    assert result.exit_code == 2
    assert hint in result.stderr


@pytest.mark.parametrize(
    ("content", "hint"), [(b"{", "is not JSON"), (b"{}", "must hold a JSON array"), (b"\xff", "UTF-8")]
)
def test_messages_that_are_none(call: Call, tmp_path: Path, content: bytes, hint: str) -> None:
    file = tmp_path / "messages.json"
    file.write_bytes(content)
    result = call("submit", "-m", "tiny", "--messages", str(file), "--api-key", "psk_x")
    assert result.exit_code == 2
    assert hint in result.stderr


def test_model_output_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;owned\x07\x1b[2Jb\r\x9b31m\tc\n\x00\u202e"
    assert printable(evil) == "a\\x1b]0;owned\\x07\\x1b[2Jb\\r\\x9b31m\tc\n\\x00\\u202e"
    write_text(Console(force_terminal=True, color_system=None, markup=False), evil, end="")
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\r", "\x9b", "\x00", "\u202e"} & set(shown)


def test_a_pipe_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_text(Console(force_terminal=False), "\x1b[1m[bold]:smile:", end="")
    assert capsys.readouterr().out == "\x1b[1m[bold]:smile:"


def test_moments() -> None:
    assert moment("2030-01-31T13:00:00+01:00") == datetime(2030, 1, 31, 12, tzinfo=UTC)
    for text, seconds in (("45s", 45), ("2m", 120), ("3h", 10_800), ("90d", 7_776_000)):
        assert abs((moment(text) - utc_now()).total_seconds() - seconds) < 5
    with pytest.raises(click.BadParameter):
        moment("999999999d")


@pytest.mark.parametrize(("text", "expected"), [("a=1", 1), ("a=x", "x"), ("a=[1]", [1]), ("a=", ""), ("a=b=c", "b=c")])
def test_json_assignments(text: str, expected: object) -> None:
    assert json_assignment(text) == ("a", expected)
