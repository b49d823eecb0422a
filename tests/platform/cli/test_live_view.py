"""`penstock watch` on a real terminal (a pseudo-terminal), while a worker writes."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

import pytest
from penstock import Client

from tests.platform.api.conftest import Worker


class Terminal:
    """A process whose standard streams are a terminal of 80 x 24, and what it has shown."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process, self._screen = process, screen
        self._bytes = b""

    def read_until(self, pattern: str) -> str:
        """Read until the plain text (without escape sequences) has the pattern; returns that text."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.plain):
            assert time.monotonic() < deadline, self.plain
            if select.select([self._screen], [], [], 0.05)[0]:
                try:
                    self._bytes += os.read(self._screen, 65536)
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.plain), self.plain
        return self.plain

    @property
    def shown(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)


@contextmanager
def on_terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    """`penstock` with these arguments on a terminal, while the block runs."""
    screen, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments],
        stdin=inner, stdout=inner, stderr=inner, env=os.environ | environment | {"TERM": "xterm"},
        start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.fixture
def where(url: str, api_key: str) -> dict[str, str]:
    return {"PENSTOCK_URL": url, "PENSTOCK_API_KEY": api_key}


def test_tokens_states_and_the_end_are_shown(connected: Client, worker: Worker, where: dict[str, str]) -> None:
    job = connected.jobs.submit(model="tiny", prompt="hello")
    with on_terminal("watch", job.id, **where) as terminal:
        terminal.read_until("job.queued")
        worker.claim()
        worker.write("Grüße ", "\x1b]0;owned\x07", "an alle")
        terminal.read_until(r"running.*3 tokens(.|\n)*Grüße \\x1b\]0;owned\\x07an alle")
        worker.write(*["line\n"] * 60)
        terminal.read_until("63 tokens")
        worker.write("the end")
        worker.finish()
        shown = terminal.read_until(r"the end(.|\n)*succeeded, tiny version 1, 64 tokens")
        assert terminal.process.wait(10) == 0
    assert "\x1b]0;" not in terminal.shown
    assert shown.count("line") >= 60


def test_ctrl_c_ends_the_watching_and_not_the_job(connected: Client, worker: Worker, where: dict[str, str]) -> None:
    job = connected.jobs.submit(model="tiny", prompt="hello")
    with on_terminal("watch", job.id, **where) as terminal:
        terminal.read_until("job.queued")
        terminal.process.send_signal(signal.SIGINT)
        shown = terminal.read_until("the job goes on. Again: penstock watch")
        assert terminal.process.wait(10) == 130
    assert "Traceback" not in shown
    assert connected.jobs.get(job.id).status == "queued"


def test_a_list_is_a_table(connected: Client, worker: Worker, where: dict[str, str]) -> None:
    job = connected.jobs.submit(model="tiny", prompt="hello")
    with on_terminal("list", **where) as terminal:
        shown = terminal.read_until(job.id)
    assert re.search(r"id +status +model", shown)


def test_a_waiting_job_shows_its_place_as_it_changes(connected: Client, worker: Worker, where: dict[str, str]) -> None:
    connected.jobs.submit(model="tiny", prompt="first")
    job = connected.jobs.submit(model="tiny", prompt="second")
    with on_terminal("watch", job.id, **where) as terminal:
        terminal.read_until("position 2: a worker is about to take it")
        worker.claim()
        terminal.read_until("position 1: ")
