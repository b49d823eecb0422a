"""How the outside asks the supervisor to stop: once for an orderly end, twice for a quick one."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """The supervisor was asked to stop while it was still starting."""


class StopSwitch:
    """Set by signals or by a call; read by everything that waits.

    A plain number, since a signal's handler may interrupt its own thread anywhere, also where it holds a lock.
    """

    def __init__(self) -> None:
        self._presses = 0

    @property
    def is_on(self) -> bool:
        """Whether the supervisor shall stop."""
        return self._presses > 0

    @property
    def is_urgent(self) -> bool:
        """Whether it was asked twice: running jobs shall not be waited for."""
        return self._presses > 1

    def press(self) -> None:
        """Ask to stop; the second time, ask to hurry. Safe in a signal handler."""
        self._presses += 1

    def wait(self) -> None:
        """Wait until somebody asks to stop."""
        while not self.is_on:
            time.sleep(0.1)

    def raise_if_on(self) -> None:
        """Raise StopRequested if somebody has asked to stop."""
        if self.is_on:
            raise StopRequested

    @contextmanager
    def pressed_by_signals(self) -> Iterator[None]:
        """While the block runs, Ctrl-C, SIGTERM and a closed terminal press the switch. For the main thread."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self.press()

        before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
