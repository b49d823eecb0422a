"""Work in processes of its own, each under a limit of time: what one of them breaks, the others do not see.

An error on a GPU poisons the process that met it, and a compiler that never ends takes its caller along. So each part
is a process, whose whole group is ended when its time is over.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

DONE, FAILED, LATE, UNREACHED, ABSENT = "ok", "failed", "out of time", "not reached", "not present"
LEAST_SECONDS = 5.0  # with less left, a part is not begun: it could only load its libraries


@dataclass(frozen=True, slots=True)
class Part:
    """A command to run, and the most seconds that it may take. `absent` says why there is nothing to run."""

    name: str
    command: Sequence[str]
    limit: float
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended: `how` is one of the words above, `note` the last line that it said, or why it was not run."""

    name: str
    how: str
    seconds: float
    note: str
    log: Path | None = None

    @property
    def bad(self) -> bool:
        return self.how not in (DONE, ABSENT)


Told = Callable[[Outcome], None]


def run_parts(parts: Sequence[Part], folder: Path, *, seconds: float, at_once: int, told: Told) -> list[Outcome]:
    """Run `parts` in their order, `at_once` at a time, within `seconds` in all. `told` hears of each as it ends.

    What each says is in a file in `folder`, which the caller may take away afterwards.
    """
    end, telling = time.monotonic() + seconds, Lock()

    def run(part: Part) -> Outcome:
        outcome = run_part(part, folder, end - time.monotonic())
        with telling:
            told(outcome)
        return outcome

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(run, parts))


def run_part(part: Part, folder: Path, left: float) -> Outcome:
    """Run one part, its output to a file in `folder`, for at most its own limit and the seconds `left`."""
    if part.absent:
        return Outcome(part.name, ABSENT, 0.0, part.absent)
    if left < LEAST_SECONDS:
        return Outcome(part.name, UNREACHED, 0.0, "the time for all was over")
    log = folder / f"{part.name.replace(' ', '-')}.log"
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(part.command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        code = _code(process, min(part.limit, left))
    how = LATE if code is None else FAILED if code else DONE
    return Outcome(part.name, how, time.monotonic() - started, last_line(log.read_text(errors="replace")), log)


def _code(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit status; None where the time was over and the process, with all that it started, was ended."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def keep(outcome: Outcome, file: Path) -> None:
    """Add what a part said to the one file that holds the words of all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    said = outcome.log.read_text(errors="replace") if outcome.log else outcome.note
    with file.open("a") as all_said:
        all_said.write(f"=== {outcome.name}: {outcome.how} after {outcome.seconds:.0f} s\n{said}\n")


def last_line(text: str) -> str:
    """Empty where nothing was said."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """A line for each part."""
    return [f"{each.name:<28} {each.how:<12} {each.seconds:>6.0f} s  {each.note[:70]}".rstrip() for each in outcomes]
