"""In front of PYTHONPATH this makes a worker process write down every statement that writes, once, in $SQL_FILE.

A line is `<thread>\\t<statement>`. The statement is what PostgreSQL gets, without its parameters.
"""

import os
import re
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "penstock.db"
WRITES = re.compile(r"\b(insert|update|delete|merge|truncate)\b", re.IGNORECASE)


class Witness(MetaPathFinder):
    """Lets `penstock.db` be imported as ever, then listens to every engine of SQLAlchemy."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(TARGET)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_listen(module: ModuleType) -> None:
            load(module)
            listen()

        spec.loader.exec_module = load_and_listen  # type: ignore[method-assign]  # of this one loader
        return spec


def listen() -> None:
    from sqlalchemy import Engine, event

    seen: set[str] = set()
    file = Path(os.environ["SQL_FILE"]).open("a", buffering=1)  # noqa: SIM115  # as long as the process lives

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        line = f"{threading.current_thread().name}\t{' '.join(statement.split())}\n"
        if WRITES.search(statement) and line not in seen:
            seen.add(line)
            file.write(line)


if "SQL_FILE" in os.environ:
    sys.meta_path.insert(0, Witness())
