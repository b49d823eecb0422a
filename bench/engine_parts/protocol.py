"""What the bench asks of an engine, and how it is told: one JSON line each way, over a child's stdin and stdout.

Nothing but the standard library is imported here, for the peers' environment has no more of ours.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Load:
    """`batch` sequences at once, each of `prompt` random tokens and `output` more; another `seed`, other tokens."""

    batch: int
    prompt: int
    output: int
    seed: int = 0

    def prompts(self, vocabulary: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed} {self.batch}")
        return [[draw.randrange(vocabulary) for _ in range(self.prompt)] for _ in range(self.batch)]


@dataclass(frozen=True)
class Measured:
    """One load. `decode_steps` is empty where an engine does not let its steps be seen."""

    seconds: float  # from the first prompt to the last output token
    decode_steps: list[float]  # seconds of every step in which each sequence decoded one token, and nothing else ran
    first_tokens: list[int]  # of each sequence, greedy: to see that all run the same model


@dataclass(frozen=True)
class Memory:
    """Of one process, in MiB. `rss` and `peak` count mapped files too; `pss` a share of what several have mapped."""

    rss: int
    pss: int
    peak: int

    @classmethod
    def now(cls) -> "Memory":
        status, rollup = _kilobytes("status"), _kilobytes("smaps_rollup")
        return cls(rss=status["VmRSS"] >> 10, pss=rollup["Pss"] >> 10, peak=status["VmHWM"] >> 10)


@dataclass(frozen=True)
class Ready:
    """A contestant with its model loaded."""

    measure: Callable[[Load], Measured]
    about: dict[str, str]  # what it chose to run with here


class CannotRun(Exception):
    """This machine has not what the contestant needs; the message says what."""


def serve(start: Callable[[], Ready]) -> None:
    """Be a contestant: load the model, say what it holds, then measure each load that is asked for.

    What libraries print goes to stderr, so that stdout holds answers alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**said: object) -> None:
        print(json.dumps(said), file=answers, flush=True)

    try:
        ready = start()
    except CannotRun as reason:
        answer(missing=str(reason))
        return
    answer(about=ready.about, memory=asdict(Memory.now()))
    for line in sys.stdin:
        measured = ready.measure(Load(**json.loads(line)))
        answer(measured=asdict(measured), memory=asdict(Memory.now()))


def _kilobytes(name: str) -> dict[str, int]:
    """The fields of a file of /proc/self that are given in kB."""
    lines = Path(f"/proc/self/{name}").read_text().splitlines()
    words = [line.split() for line in lines]
    return {word[0].rstrip(":"): int(word[1]) for word in words if word[-1] == "kB"}
