"""What a supervisor writes down about its children, and how the next one ends those that outlived it.

A process id alone proves nothing: ids are given again. A child is known by its id and its start, on this boot of
this machine (or container); its descendants by the session that it led.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from penstock.embedded.child import is_alive, kill_session, session_members
from penstock.embedded.service import Report
from penstock.embedded.state_folder import StateFolder

HAS_PROC = Path("/proc/self/stat").exists()
PATIENCE_SECONDS = 15.0  # what a child of an earlier run gets to end before it is killed


def describe_children(processes: dict[str, int]) -> dict[str, Any]:
    """Facts for `running.json` by which `end_leftovers` will know these processes, given by name."""
    children = [
        {"name": name, "pid": pid, "started": started}
        for name, pid in processes.items()
        if (started := _start_of(pid)) is not None
    ]
    return {"machine": _machine(), "children": children}


def end_leftovers(folder: StateFolder, report: Report) -> None:
    """End the children of a supervisor that was killed on this folder, and their descendants.

    On Linux the kernel has told them to end already. PostgreSQL is left to its own `prepare`, which never kills it.
    """
    running = folder.read_running()
    children = running.get("children", []) if running.get("machine") == _machine() else []
    children = [child for child in children if child["name"] != "postgres"]
    for child in children:
        if child["pid"] in _family_of(child):
            report(child["name"], f"ending process {child['pid']} of an earlier run")
            with suppress(ProcessLookupError):
                os.kill(child["pid"], signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for child in children:
        while child["pid"] in _family_of(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        if _family_of(child):
            kill_session(child["pid"])
    folder.forget_running()


def _family_of(child: dict[str, Any]) -> list[int]:
    """The living processes of the session that `child` led, unless another process has its id by now."""
    started = _start_of(child["pid"])
    if started is not None and started != child["started"]:
        return []
    return [pid for pid in session_members(child["pid"]) if is_alive(pid)]


def _start_of(pid: int) -> str | None:
    """When the process started, by a clock that nobody adjusts where there is one; None when there is none."""
    try:
        if not HAS_PROC:
            return str(psutil.Process(pid).create_time())
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[19]  # field 22, starttime: in clock ticks since the machine's start
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return None


def _machine() -> str:
    """This boot of this machine, and which of its containers."""
    if not HAS_PROC:
        return str(int(psutil.boot_time()))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
