"""One engine process as its worker has it: started, written to, read from, and ended, with the reason of its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import msgspec
from penstock.logs import get_logger

from penstock_worker.engine_process import SHOW_STACKS
from penstock_worker.messages import Broken, Commands, EngineSpec, FromEngine, Grant, decode_report, encode

_EXIT_SECONDS: Final = 10.0
# How long the engine's threads spin before they sleep, in turns of a loop: 30,000 are some tens of microseconds, enough
# for the moments between two products. At OpenMP's default, where another process keeps a core busy, two of them end up
# spinning on one core, each through the other's time: products that take 5 ms took 23.
_SPIN_COUNT: Final = "30000"

log = get_logger(__name__)


class EngineFailed(Exception):
    """The engine process ended before it was ready. `code` is the engine's own, or `engine_exited`.

    `killed` says that a signal ended it which was not ours: nothing that it said, or did, is to be mended.
    """

    def __init__(self, code: str, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.killed = killed


class EngineChild:
    """The process. `start`, `receive` and what tells its end belong to one thread, whose end would end it on Linux.

    `send` belongs to one thread at a time; `kill` and `show_stacks` are for any.
    """

    def __init__(self, program: Sequence[str]) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._broken: Broken | None = None
        self._killed_because: str | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, once it has begun."""
        return self._process.pid if self._process is not None else None

    def start(self, spec: EngineSpec) -> None:
        """Start the process and tell it what to load. One that was killed before ends at once."""
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *self._program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"GOMP_SPINCOUNT": _SPIN_COUNT, **os.environ},
            )
        if self._killed_because is not None:
            self._process.kill()
        self.send(spec)

    def send(self, message: EngineSpec | Grant | Commands) -> bool:
        """Send it a message. False when the process has gone, which `receive` tells too."""
        assert self._connection is not None
        with suppress(OSError):
            self._connection.send_bytes(encode(message))
            return True
        return False

    def receive(self) -> FromEngine | None:
        """The next message; None once the process has gone."""
        assert self._connection is not None
        try:
            message = decode_report(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None
        except msgspec.DecodeError as error:
            self.kill(f"the engine process sent what cannot be read: {error}")
            return None
        if isinstance(message, Broken):
            self._broken = message
        return message

    def how_it_ended(self) -> str:
        """Wait for its end, not for long, and say why it came: our reason, its own, or how the system tells it."""
        code = self._exit_code()
        if self._killed_because is not None:
            return self._killed_because
        if self._broken is not None:
            return self._broken.message
        if code < 0:
            return f"the engine process was ended by {signal.Signals(-code).name}"
        return f"the engine process ended with exit code {code}"

    def failure(self) -> EngineFailed:
        """Why it ended before it was ready."""
        how = self.how_it_ended()
        if self._broken is not None:
            return EngineFailed(self._broken.code, how)
        return EngineFailed("engine_exited", how, killed=self._killed_because is None and self._exit_code() < 0)

    def _exit_code(self) -> int:
        assert self._process is not None
        assert self._connection is not None
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._connection.close()
        return code

    def show_stacks(self) -> None:
        """Have it write to standard error where each of its threads is."""
        assert self._process is not None
        self._process.send_signal(SHOW_STACKS)

    def kill(self, reason: str) -> None:
        """End it at once, or as soon as it is started. The first reason counts."""
        if self._killed_because is None:
            log.warning("engine.killed", reason=reason)
            self._killed_because = reason
        if self._process is not None:
            self._process.kill()
