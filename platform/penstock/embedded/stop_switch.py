"""How the outside asks the supervisor to stop: once for an orderly end, twice for a quick one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """The supervisor was asked to stop while it was still starting."""


class StopSwitch:
    """Set by signals or by a call; read by everything that waits."""

    def __init__(self) -> None:
        self._asked, self._urgent = threading.Event(), threading.Event()

    @property
    def is_on(self) -> bool:
        """Whether the supervisor shall stop."""
        return self._asked.is_set()

    @property
    def is_urgent(self) -> bool:
        """Whether it was asked twice: running jobs shall not be waited for."""
        return self._urgent.is_set()

    def press(self) -> None:
        """Ask to stop; the second time, ask to hurry. Safe in a signal handler."""
        if self._asked.is_set():
            self._urgent.set()
        self._asked.set()

    def wait(self) -> None:
        """Wait until somebody asks to stop."""
        self._asked.wait()

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
