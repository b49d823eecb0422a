"""A TCP proxy that can be cut, for outages of a service that others go on using."""

import selectors
import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes to `port` on loopback until `cut`, and refuses connections then; while it hangs nothing moves."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._open = True
        self._closed = False
        self._moving = threading.Event()
        self._moving.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection and take no new one."""
        self._open = False
        with self._lock:
            for one in list(self._pairs):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def hang(self) -> None:
        """Keep every connection, and what is sent on it, to oneself."""
        self._moving.clear()

    def mend(self) -> None:
        """Take connections again, and pass on what was kept."""
        self._open = True
        self._moving.set()

    def close(self) -> None:
        self._closed = True
        self._moving.set()
        self.cut()
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if not self._open:
                client.close()
                continue
            self._threads.append(threading.Thread(target=self._pass_on, args=(client,), daemon=True))
            self._threads[-1].start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            with self._lock:
                self._pairs |= {client: server, server: client}
            with suppress(OSError), selectors.DefaultSelector() as selector:
                for end in (client, server):
                    selector.register(end, selectors.EVENT_READ)
                self._copy(selector)
            with self._lock:
                del self._pairs[client], self._pairs[server]

    def _copy(self, selector: selectors.BaseSelector) -> None:
        while self._open:
            for key, _ in selector.select(0.2):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if not (data := source.recv(65536)):
                    return
                self._moving.wait()
                self._pairs[source].sendall(data)
