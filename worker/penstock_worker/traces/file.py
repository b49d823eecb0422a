"""The last steps of a serving engine, on disk: there after a crash too, and bounded.

FOLDER/dep_x-4711.jsonl.1   the `steps` records before those of
FOLDER/dep_x-4711.jsonl     this file, which grows by a line a step until it has `steps`, and takes the other's place
"""

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from penstock.logs import get_logger
from penstock_engine.errors import TraceUnreadable
from penstock_engine.trace import StepTrace, Trace, TraceHeader, read_trace

STEPS: Final = 4096
KEPT: Final = 8
"""Traces of one name: that of the process that runs, and of those before it."""

log = get_logger(__name__)


class TraceFile:
    """Where one engine process records. Unbuffered: what a killed process had done is there to the last step.

    Raises OSError when the folder cannot be written. Later errors (a full disk) end the trace, and not the engine.
    """

    def __init__(self, folder: Path, name: str, header: TraceHeader, steps: int = STEPS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}-{os.getpid()}.jsonl"
        self._header = header
        self._steps = steps
        self._written = 0
        self._newest = 0
        self._file: FileIO | None = self._begin()
        _forget_oldest(folder, name)

    def take(self, trace: StepTrace) -> None:
        """Write the newest record, if it is not there yet."""
        record = trace.newest
        if record is None or record.step == self._newest or self._file is None:
            return
        try:
            if self._written == self._steps:
                self._turn()
            self._file.write(record.line.encode())
        except OSError as error:
            log.error("trace.stopped", path=str(self.path), error=str(error))
            self.close()
        self._written += 1
        self._newest = record.step

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _turn(self) -> None:
        self.close()
        self.path.replace(_before(self.path))
        self._file = self._begin()
        self._written = 0

    def _begin(self) -> FileIO:
        file = self.path.open("wb", buffering=0)
        file.write(self._header.line.encode())
        return file


def read_kept(source: Path) -> Trace:
    """All that is kept of the trace `source`, or of the newest one in that folder. Raises TraceUnreadable."""
    path = _newest_in(source) if source.is_dir() else source
    trace, before = read_trace(path), _before(path)
    return Trace(trace.header, read_trace(before).records + trace.records) if before.exists() else trace


def _newest_in(folder: Path) -> Path:
    traces = _by_age(folder, "*")
    if not traces:
        raise TraceUnreadable(folder, 1, "the folder holds no trace (*.jsonl)")
    return traces[-1]


def _by_age(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.jsonl"), key=lambda path: path.stat().st_mtime_ns)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _forget_oldest(folder: Path, name: str) -> None:
    """An engine that is restarted again and again must not fill the disk."""
    with suppress(FileNotFoundError):  # another process of this name forgets them too
        for path in _by_age(folder, f"{name}-*")[:-KEPT]:
            _before(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
