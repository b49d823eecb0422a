"""TCP ports of the loopback address."""

import socket

from penstock.embedded.errors import PortInUse

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now; what is left of closed connections does not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(chosen: int | None, remembered: int | None, setting: str) -> int:
    """The chosen port, else last time's where it is free, else any free one.

    Raises PortInUse, naming the setting, when the chosen one is taken.
    """
    if chosen:
        if not is_free(chosen):
            raise PortInUse(chosen, setting)
        return chosen
    if remembered and is_free(remembered):
        return remembered
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
