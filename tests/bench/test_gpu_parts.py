"""Parts in processes of their own: what one does, and how long it takes, is nothing to the others."""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.gpu import main as bench_main
from bench.gpu_parts.parts import ABSENT, DONE, FAILED, LATE, UNREACHED, Outcome, Part, run_parts, table
from tests.gpu.check import check, pytest_parts, sanitizer_parts
from tests.gpu.check import main as check_main

ROOT = Path(__file__).parents[2]
SLEEPING_CHILD = "sleep 600 & echo $!; wait"


def part(name: str, code: str, limit: float = 60.0, absent: str = "") -> Part:
    return Part(name, (sys.executable, "-u", "-c", code), limit, absent)


def run(folder: Path, *parts: Part, seconds: float = 60.0) -> list[Outcome]:
    return run_parts(parts, folder, seconds=seconds, at_once=1, told=lambda _: None)


def test_a_part_that_fails_stops_no_other(tmp_path: Path) -> None:
    broken, whole, missing = run(
        tmp_path,
        part("broken", "print('about to'); raise SystemExit('it broke')"),
        part("whole", "print('measured')"),
        part("missing", "raise SystemExit(1)", absent="the tool is not installed here"),
    )
    assert (broken.how, broken.note, broken.bad) == (FAILED, "it broke", True)
    assert (whole.how, whole.note, whole.bad) == (DONE, "measured", False)
    assert (missing.how, missing.note, missing.bad) == (ABSENT, "the tool is not installed here", False)
    assert (tmp_path / "broken.log").read_text().startswith("about to")


def test_time_that_is_over_ends_a_part_with_all_that_it_started(tmp_path: Path) -> None:
    (late,) = run(tmp_path, Part("late", ("sh", "-c", SLEEPING_CHILD), limit=3.0))
    assert (late.how, late.bad) == (LATE, True)
    child = Path(f"/proc/{int(late.note)}/stat")
    end = time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_is_not_reached_is_said_to_be(tmp_path: Path) -> None:
    (outcome,) = run(tmp_path, part("last", "print('never')"), seconds=1.0)
    assert (outcome.how, outcome.bad) == (UNREACHED, True)
    assert not (tmp_path / "last.log").exists()
    assert "not reached" in table([outcome])[0]


def test_what_a_gpu_is_to_check_can_be_imported_without_one() -> None:
    """A name that has gone from the engine shows here, and not first where the GPU is."""
    files = sorted((ROOT / "tests" / "gpu").glob("*.py"))
    modules = [importlib.import_module(f"tests.gpu.{file.stem}") for file in files]
    testing = [module.__name__ for module in modules if any(name.startswith("test_") for name in vars(module))]
    assert [f"tests.gpu.{part.name}" for part in pytest_parts(0)] == testing


@pytest.mark.parametrize(("tool", "how"), [(None, ABSENT), ("/bin/false", FAILED)])
def test_a_memory_checker_that_is_not_there_is_no_failure_and_one_that_finds_something_is(
    tool: str | None, how: str, tmp_path: Path
) -> None:
    assert [outcome.how for outcome in run(tmp_path, *sanitizer_parts(tool))] == [how, how]


def test_a_check_with_a_failure_says_which_lines_fail_and_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "all.log"
    parts = [part("good", "print('2 passed')"), part("bad", "print('FAILED tests/x.py::y'); raise SystemExit(3)")]
    assert check(parts[:1], log, 60.0) == 0
    capsys.readouterr()
    assert check(parts, log, 60.0) == 1
    said = capsys.readouterr().out
    assert "FAILED tests/x.py::y" in said
    assert said.splitlines()[-2].split()[:2] == ["good", "ok"]
    assert sorted(line for line in log.read_text().splitlines() if line and line[:3] != "===") == [
        "2 passed",
        "FAILED tests/x.py::y",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize(("name", "main"), [("gpu-check", check_main), ("gpu-bench", bench_main)])
def test_without_a_gpu_each_command_says_so_in_one_line_and_fails(
    name: str, main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    assert main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"{name} needs a CUDA device")
