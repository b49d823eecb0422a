"""Who takes part, each a child process of its own: threads, allocators and memory of one do not touch another's."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from bench.engine_parts.protocol import Load, Measured, Memory

ROOT = Path(__file__).parents[2]
GGUF_KINDS = ("bf16", "q8_0", "q4_0")


@dataclass(frozen=True)
class Contestant:
    """What to start; or, in `missing`, why it cannot be here."""

    name: str
    command: tuple[str, ...] = ()
    missing: str = ""
    rough: bool = False  # computes in fewer bits: another first token here and there is to be expected


class ContestantMissing(Exception):
    """A contestant found that it cannot run here; the message is its reason."""


class ContestantFailed(Exception):
    """A contestant ended when it should have answered; the message ends with what it said last."""


class Running:
    """A started contestant, its model loaded."""

    def __init__(self, contestant: Contestant) -> None:
        """Raises ContestantMissing, ContestantFailed."""
        self.contestant = contestant
        self._said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open until `close`)
        self._process = subprocess.Popen(
            contestant.command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.about, self.loaded = self._first_answer()
        except (ContestantMissing, ContestantFailed):
            self.close()
            raise
        self.end = self.loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, load: Load) -> Measured:
        """Raises ContestantFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(load)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as cause:
            raise self._failure() from cause
        answer = self._answer()
        self.end = Memory(**answer["memory"])
        return Measured(**answer["measured"])

    def close(self) -> None:
        """The end of its input is its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def _first_answer(self) -> tuple[dict[str, str], Memory]:
        answer = self._answer()
        if "missing" in answer:
            raise ContestantMissing(answer["missing"])
        return answer["about"], Memory(**answer["memory"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self) -> ContestantFailed:
        code = self._process.wait()
        self._said.seek(0)
        return ContestantFailed(f"{self.contestant.name} ended with {code}:\n{self._said.read()[-2000:]}")


def start(contestant: Contestant) -> Running:
    """Raises ContestantMissing, ContestantFailed."""
    if contestant.missing:
        raise ContestantMissing(contestant.missing)
    return Running(contestant)


def run_json(module: str, arguments: Sequence[object], python: str = sys.executable) -> Any:
    """What `python -m module arguments` prints last, as JSON; its stderr passes through."""
    command = [python, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


@dataclass(frozen=True)
class Room:
    """What everybody gets: threads, and a cache for `sequences` of `context` tokens."""

    threads: int
    sequences: int
    context: int

    def command(self, python: str | Path, module: str, model: Path, *others: str) -> tuple[str, ...]:
        room = [f"--{name}={value}" for name, value in asdict(self).items()]
        return (str(python), "-m", f"bench.engine_parts.{module}", str(model), *room, *others)


def own(folder: Path, room: Room) -> list[Contestant]:
    """Penstock's engine in each of its precisions."""
    command = room.command(sys.executable, "own", folder)
    return [
        Contestant("penstock bf16", command),
        Contestant("penstock int8", (*command, "--quantization=int8"), rough=True),
        Contestant("penstock int4", (*command, "--quantization=int4"), rough=True),
    ]


def transformers(folder: Path, room: Room) -> list[Contestant]:
    command = room.command(sys.executable, "transformers_peer", folder)
    return [Contestant(f"transformers {way}", (*command, f"--way={way}")) for way in ("generate", "generate_batch")]


def llama_cpp(folder: Path, room: Room, python: Path, cache: Path) -> list[Contestant]:
    """llama.cpp on `folder`'s weights, written as GGUF to `cache` once."""
    if not python.exists():
        missing = f"no {python}; `make bench-peers` makes it"
        return [Contestant(f"llama.cpp {kind}", missing=missing) for kind in GGUF_KINDS]
    return [
        Contestant(
            f"llama.cpp {kind}",
            room.command(python, "llamacpp_peer", _gguf(folder, kind, python, cache)),
            rough=kind != "bf16",
        )
        for kind in GGUF_KINDS
    ]


def _gguf(folder: Path, kind: str, python: Path, cache: Path) -> Path:
    """The file of `folder` in `kind`; written anew when the weights have changed."""
    written = max(path.stat().st_mtime_ns for path in folder.glob("*.safetensors"))
    file = cache / f"{folder.name}-{written}-{kind}.gguf"
    if not file.exists():
        unfinished = file.with_suffix(".unfinished")
        print(f"writing {file}", file=sys.stderr)
        run_json("bench.engine_parts.gguf_writer", [folder, unfinished, kind], str(python))
        unfinished.rename(file)
    return file
