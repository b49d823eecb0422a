"""The engine's process: `python -m penstock_worker.engine_process FD PARENT_PID`, started by the bridge.

It speaks `messages` over the inherited socket FD and ends with its parent, however that ends. The tie comes
before the heavy imports, so that no orphan survives them.
"""

import ctypes
import faulthandler
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Final

SHOW_STACKS: Final = signal.SIGUSR1
"""Makes the process write to standard error where each of its threads is, even if it hangs."""
ENGINE_PROGRAM: Final = ("-m", "penstock_worker.engine_process")
"""What Python is told to run as an engine: the socket's number and the parent's follow."""
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> None:
    """Serve the worker at the other end of the socket until it says stop, or is gone."""
    descriptor, parent = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides
    faulthandler.enable()
    faulthandler.register(SHOW_STACKS)
    die_with(parent)
    from penstock_worker.engine_loop import serve  # here, because torch takes seconds

    serve(Connection(descriptor))


def die_with(parent: int) -> None:
    """Ask Linux to kill us when the parent's thread that started us ends; elsewhere the socket's end of file tells."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(f"worker {parent} has ended")


if __name__ == "__main__":
    main(sys.argv[1:])
