"""In front of PYTHONPATH this makes an engine process hang in a step as soon as the file $HANG_FILE is there.

The file goes, so that the next process runs on. What hangs keeps the interpreter's lock, as a kernel stuck in C does:
no Python code of that process runs any more.
"""

import ctypes
import os
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

    def launch_unless_told_to_hang(runner: Any, batch: Any) -> Any:
        try:
            Path(os.environ["HANG_FILE"]).unlink()
        except FileNotFoundError:
            return launch(runner, batch)
        libc = ctypes.PyDLL(None)
        while True:
            libc.pause()

    module.ModelRunner.launch = launch_unless_told_to_hang


if "penstock_worker.engine_process" in sys.orig_argv:
    sys.meta_path.insert(0, Saboteur())
