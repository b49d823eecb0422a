"""A tool beside the engines: `python -m penstock_worker.tool_process PARENT_PID MODULE ARGUMENT...` runs the module.

It has the lowest priority, so that serving does not wait for it, and ends with its parent, however that ends. It tells
by lines of JSON how far it is and how it ended, as `penstock_compress.telling` has it.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from penstock_worker.engine_process import die_with

TOOL: Final = "penstock_compress"
"""The module that quantizes and evaluates."""
_LOWEST_PRIORITY: Final = 19
_STOP_SECONDS: Final = 5.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class ToolProcess:
    """The running tool. `lock` is an open file whose lock it holds as long as it lives.

    Must be made by a thread that lives as long as the process should: Linux ends it with that thread.
    """

    def __init__(self, arguments: list[str], log: Path, lock: int, tool: str = TOOL) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "penstock_worker.tool_process", str(os.getpid()), tool, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches the whole group; the worker decides
            )
        self._told: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, name="tool-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self) -> list[dict[str, Any]]:
        """What it has told since this was last called."""
        taken = self._told[:]
        del self._told[: len(taken)]
        return taken

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end at most so long. All that it told can then be taken."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join()
        return True

    @property
    def cpu_seconds(self) -> float:
        """The processor's time that it has taken, by all its threads; it stands still in one that hangs."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def stop(self) -> None:
        """End it: what is done is kept. One that does not end by itself is killed."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        if not self.ended_within(_STOP_SECONDS):
            self._process.kill()
            self.ended_within(_STOP_SECONDS)

    @property
    def last_words(self) -> str:
        """How it ended, and the last line of its log."""
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"{how}: {lines[0]}" if lines else how

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
                    told = json.loads(line)
                    if isinstance(told, dict):
                        self._told.append(told)


def main(arguments: list[str]) -> None:
    """Become the tool, tied to the process `arguments[0]`."""
    die_with(int(arguments[0]))
    os.nice(_LOWEST_PRIORITY)
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
