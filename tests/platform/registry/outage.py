"""A way to MLflow that can be cut: a TCP relay before the real server."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Way:
    """Connections made to `url` reach the server while `open` is set; those made while it is cut are refused."""

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        assert address.hostname is not None
        assert address.port is not None
        self._target = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.open = True
        own = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{own}"
        self._own_name, self._target_name = own.encode(), address.netloc.encode()

    def cut(self) -> None:
        """End what is open and let nothing more through."""
        self.open = False
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.open:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._pairs.append((client, server))
            self._start_pump(client, server, {self._own_name: self._target_name})  # MLflow wants its own name as Host
            self._start_pump(server, client, {})

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _start_pump(self, source: socket.socket, sink: socket.socket, names: dict[bytes, bytes]) -> None:
        threading.Thread(target=_pump, args=(source, sink, names), daemon=True).start()


@contextmanager
def way_to(target: str) -> Iterator[Way]:
    """A way to the server that is open at first."""
    way = Way(target)
    thread = threading.Thread(target=way.serve)
    thread.start()
    yield way
    way.close()
    thread.join()


def _pump(source: socket.socket, sink: socket.socket, names: dict[bytes, bytes]) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            for old, new in names.items():
                piece = piece.replace(old, new)
            sink.sendall(piece)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
