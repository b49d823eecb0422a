"""SIGTERM and SIGINT: the first lets jobs finish for a while, the second hands them back at once."""

import os
import signal
from types import FrameType
from typing import Self


class StopSignals:
    """Counts the signals that ask the process to stop.

    The handler only writes to a pipe: whatever takes a lock there could wait for the very thread that it
    interrupted.
    """

    def __init__(self) -> None:
        self._read, self._written = os.pipe()

    def install(self) -> Self:
        """Handle the signals from now on. Only the main thread can."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        return self

    def wait(self) -> None:
        """Block until the next signal."""
        os.read(self._read, 1)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        os.write(self._written, b"s")
