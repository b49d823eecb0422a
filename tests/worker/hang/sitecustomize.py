"""In front of PYTHONPATH this makes an engine process hang in a step as soon as the file $HANG_FILE is there.

What hangs keeps the interpreter's lock, as a kernel stuck in C does: no Python code of that process runs any more.
While the file $DEATH_FILE is there it counts the steps that are left until the process kills itself. Either file goes,
so that the next process runs on.
"""

import ctypes
import os
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "penstock_engine.runner"


class Saboteur(MetaPathFinder):
    """Lets the runner be imported as ever, then puts a trap before its `launch`."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(TARGET)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_sabotage(module: ModuleType) -> None:
            load(module)
            sabotage(module)

        spec.loader.exec_module = load_and_sabotage  # type: ignore[method-assign]  # of this one loader
        return spec


def sabotage(module: ModuleType) -> None:
    launch = module.ModelRunner.launch

    def launch_unless_told_otherwise(runner: Any, batch: Any) -> Any:
        if (file := told("HANG_FILE")) is not None:
            hang(file)
        if (file := told("DEATH_FILE")) is not None:
            die_in_time(file)
        return launch(runner, batch)

    module.ModelRunner.launch = launch_unless_told_otherwise


def told(variable: str) -> Path | None:
    file = Path(os.environ.get(variable, ""))
    return file if file.is_file() else None


def hang(file: Path) -> None:
    file.unlink()
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()


def die_in_time(file: Path) -> None:
    left = int(file.read_text())
    if left == 0:
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    file.write_text(str(left - 1))


if "penstock_worker.engine_process" in sys.orig_argv:
    sys.meta_path.insert(0, Saboteur())
