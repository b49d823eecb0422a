"""What the supervisor asks of each thing that it runs."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from penstock.embedded.accounts import Account, reachable
from penstock.embedded.child import Command, Log
from penstock.embedded.errors import EmbeddedError, NoDiskSpace, ServiceFailed, ServiceMissing
from penstock.embedded.state_folder import StateFolder

Report = Callable[[str, str], None]
"""Called with a service's name and one line of progress."""


def silent(_service: str, _line: str) -> None:
    """A Report that tells nobody."""


class Service(Protocol):
    """A process to keep running: the supervisor calls `prepare`, `command`, then `is_ready` until true."""

    @property
    def name(self) -> str:
        """Short and unique; its log is NAME.log."""

    @property
    def stage(self) -> int:
        """It leans on services of lower stages: all of one stage are stopped together, the highest first."""

    @property
    def stop_seconds(self) -> float:
        """How long it may take to end when asked to, before it is killed."""

    def prepare(self, report: Report) -> None:
        """Put its files in order: before the first start and before every restart."""

    def command(self) -> Command:
        """How to start it."""

    def is_ready(self) -> bool:
        """Ask it once whether it serves."""


def failure(folder: StateFolder, name: str, reason: str, log: Log) -> EmbeddedError:
    """The error for a service that ended too early, told from the end of its log."""
    lines = log.last_lines()
    if any("No space left on device" in line for line in lines):
        return NoDiskSpace(folder.root, folder.free_bytes)
    return ServiceFailed(name, reason, lines)


def program_of_package(
    package: str, distribution: str, program: str, folder: StateFolder, *, service: str, setting: str
) -> Path:
    """A program that a pip package ships, at a place where the service's user can run it.

    `program` is relative to the package. Raises ServiceMissing naming the package and the setting that would
    do without it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceMissing(service, distribution, setting)
    root = Path(spec.submodule_search_locations[0])
    found = root / program
    if not found.exists():
        raise ServiceMissing(service, distribution, setting)
    return _reachable_program(found, distribution, folder, folder.account)


def _reachable_program(program: Path, distribution: str, folder: StateFolder, account: Account | None) -> Path:
    installation = program.parent.parent  # .../bin/program: libraries and shared files lie beside bin
    copy = folder.programs / f"{distribution}-{version(distribution)}"
    return reachable(program, installation, copy, account)
