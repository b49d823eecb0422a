"""One process of the platform: tied to us, its output kept, stopped with all its descendants."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from penstock.embedded.accounts import Account

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_BYTES = 10 * 2**20  # per file; one older file is kept beside it
TAIL_BYTES = 8192


@dataclass(frozen=True)
class Command:
    """How to start one process, and which signal asks it to end; sent twice, it asks to hurry."""

    program: Path
    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    inherits_environment: bool = False  # our own programs do: their settings may stand there
    stdin: bytes = field(default=b"", repr=False)
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM

    def launched_by(self, supervisor_pid: int) -> list[str]:
        """The argument list that starts it through the launcher."""
        uid, gid = (self.account.uid, self.account.gid) if self.account else (-1, -1)
        ties = [str(number) for number in (supervisor_pid, int(self.stop_signal), uid, gid)]
        return [sys.executable, "-I", "-S", str(LAUNCHER), *ties, str(self.program), *self.arguments]


class Log:
    """A log file of bounded size: when it is full it becomes `NAME.log.1` and a new one begins."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path, self._limit = path, limit

    def copy_from(self, stream: IO[bytes]) -> None:
        """Copy the stream until its end. A full disk costs log lines, never the process that writes them."""
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                with suppress(OSError):
                    self._append(chunk)

    def _append(self, chunk: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(chunk)
            full = file.tell() > self._limit
        if full:
            self.path.replace(self.path.with_name(self.path.name + ".1"))

    def last_lines(self, count: int = 8) -> tuple[str, ...]:
        """The end of the log, blank lines left out."""
        if not self.path.exists():
            return ()
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return tuple(line for line in lines if line.strip())[-count:]


class Child:
    """A running process in a session of its own.

    Must be made by a thread that lives as long as the process should: Linux sends the death signal when the
    thread that started a process ends.
    """

    def __init__(self, command: Command, log: Log) -> None:
        self.command, self.log = command, log
        self._process = subprocess.Popen(
            command.launched_by(os.getpid()),
            cwd=command.folder,
            env={**(os.environ if command.inherits_environment else {}), **command.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._copier = threading.Thread(target=log.copy_from, args=(self._process.stdout,), daemon=True)
        self._copier.start()
        with suppress(BrokenPipeError):  # it ended before it read its configuration; its log says why
            self._process.stdin.write(command.stdin)
            self._process.stdin.close()

    @property
    def pid(self) -> int:
        """Its process id, which is its session's id too."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative signal number when a signal ended it."""
        return self._process.poll()

    @property
    def end(self) -> str:
        """In words, how it ended."""
        code = self._process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def send(self, number: signal.Signals) -> None:
        """Send the process (not its descendants) a signal, if it still runs."""
        self._process.send_signal(number)

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end for at most so long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.exit_code is not None

    def clean_up(self) -> None:
        """Kill the process if it still runs, and what is left of its session; finish its log."""
        self._process.kill()
        self._process.wait()
        kill_session(self.pid)
        self._copier.join()


def run_to_end(command: Command, log: Log) -> int:
    """Run a command that ends by itself; returns its exit code."""
    child = Child(command, log)
    try:
        while not child.ended_within(60):
            pass
    finally:
        child.clean_up()
    return child.exit_code or 0


def session_members(session: int) -> list[int]:
    """The processes of the session. PostgreSQL's have left it, but end when their server does."""
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                members.append(pid)
    return members


def kill_session(session: int) -> None:
    """SIGKILL every process of the session until none is left."""
    while living := [pid for pid in session_members(session) if is_alive(pid)]:
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
