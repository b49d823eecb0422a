"""Whether the client of a request is still there."""

import socket
from collections.abc import Callable, Mapping
from typing import Any


def watch(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Tells, whenever asked, whether the client has closed the connection that gunicorn answers this request on."""
    connection = environ.get("gunicorn.socket")
    return (lambda: _is_closed(connection)) if isinstance(connection, socket.socket) else never


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False  # there is nothing to read
    except OSError:
        return True


def never() -> bool:
    """Of a client of which nothing is known: it has not gone."""
    return False
