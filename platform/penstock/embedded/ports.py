"""TCP ports: which to listen on."""

import socket

from penstock.embedded.errors import PortInUse

LOOPBACK = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now; what is left of closed connections does not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose(chosen: int | None, remembered: int | None, setting: str, host: str = LOOPBACK) -> int:
    """The chosen port, else last time's where it is free, else any free one.

    Raises PortInUse, naming the setting, when the chosen one is taken.
    """
    if chosen:
        if not is_free(chosen, host):
            raise PortInUse(chosen, setting, host)
        return chosen
    if remembered and is_free(remembered, host):
        return remembered
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
