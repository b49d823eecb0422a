"""The platform's own processes: `python -m penstock web`, `control` and `worker`."""

import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from penstock.embedded.child import Command
from penstock.embedded.service import Report
from penstock.embedded.state_folder import StateFolder


class AppProcess:
    """One process of the platform. SIGTERM lets running jobs finish for a while, a second one does not."""

    stage = 2

    def __init__(
        self,
        name: str,
        folder: StateFolder,
        environment: Mapping[str, str],
        is_ready: Callable[[], bool],
        *,
        stop_seconds: float,
    ) -> None:
        self.name, self.stop_seconds = name, stop_seconds
        self._folder, self._environment, self._is_ready = folder, environment, is_ready

    def prepare(self, report: Report) -> None:
        """Nothing to put in order: all that it keeps is in the databases."""
        report(self.name, "loading")

    def command(self) -> Command:
        """`penstock NAME`, with the services' addresses in its environment."""
        return Command(
            program=Path(sys.executable),
            arguments=("-m", "penstock", self.name),
            folder=self._folder.root,
            inherits_environment=True,
            environment=self._environment,
        )

    def is_ready(self) -> bool:
        """Whether it does its work."""
        return self._is_ready()


def answers(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def is_connected(pid: int | None, ports: Collection[int]) -> bool:
    """Whether the process, or one that it started, has an open connection to each of the TCP ports."""
    if pid is None:
        return False
    connected = set()
    with suppress(psutil.Error):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_ESTABLISHED:
                    connected.add(connection.raddr.port)
    return connected.issuperset(ports)
