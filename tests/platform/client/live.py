"""The real application behind a real port, and a proxy before it that cuts connections."""

import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Connections that tests cut are no news."""


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """The application's address while the block runs."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True  # type: ignore[attr-defined]  # the threaded server has it
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class CuttingProxy:
    """Passes bytes to `port` and back, but resets each connection, or the first `cuts`, after `budget` bytes back."""

    def __init__(self, port: int, budget: int, cuts: float = float("inf")) -> None:
        self._target, self._budget, self._cuts = port, budget, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "CuttingProxy":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]  # bound methods of ours
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                far = socket.create_connection(("127.0.0.1", self._target))
                self._start(self._upwards, near, far)
                budget = self._budget if self.connections <= self._cuts else sys.maxsize
                self._start(self._downwards, far, near, budget)

    def _upwards(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(4096):
                far.sendall(data)

    def _downwards(self, far: socket.socket, near: socket.socket, left: int) -> None:
        with suppress(OSError):
            while left and (data := far.recv(min(left, 4096))):
                near.sendall(data)
                left -= len(data)
        # Zero linger: the reader gets a reset, as from a machine that went away.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for one in (near, far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
