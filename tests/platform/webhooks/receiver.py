"""A webhook receiver for tests: a real HTTP server that keeps what it got and answers by a script."""

import ssl
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What to answer. With `drip` the body's bytes leave one by one, `drip` seconds apart."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    drip: float | None = None


class Receiver(ThreadingHTTPServer):
    """Answers with `replies` in order, then with 200. `released` frees a handler that is told to hang."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Received] = []
        self.replies: deque[Reply] = deque()
        self.released = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        reply = self.server.replies.popleft() if self.server.replies else Reply()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.drip is None:
            self.wfile.write(reply.body)
            return
        for byte in reply.body:
            self.wfile.write(bytes([byte]))
            if self.server.released.wait(reply.drip):
                return

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests` instead."""


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that serves while the block runs, over TLS if a context is given."""
    receiver = Receiver()
    if context is not None:
        receiver.socket = context.wrap_socket(receiver.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        receiver.shutdown()
        thread.join()
        receiver.server_close()
