"""The web process: gunicorn, run from here, with one worker of many threads.

One worker, because its threads wait (for PostgreSQL, for tokens) more than they compute; more machines run more.
"""

import errno
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any, Final

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn, ThreadWorker
from werkzeug.exceptions import RequestTimeout

from penstock.app import create_app
from penstock.embedded.errors import PortInUse
from penstock.errors import SettingsError
from penstock.logs import configure_logs, get_logger
from penstock.settings import Settings, variable_name

_GRACE_SECONDS: Final = 10
_KEEP_ALIVE_SECONDS: Final = 15
_LINGER_SECONDS: Final = 1.0
_HEAD_SECONDS: Final = 10.0  # in which a request's head must have come
_HEAD_LOOKS: Final = (0.0, 0.01, 0.04, 0.2)  # pauses before a thread looks whether it is there
_STAY_MILLISECONDS: Final = 5  # what a thread waits for its connection's next request
_HEAD_BYTES: Final = 65_536  # beyond any head that gunicorn takes
_BODY_SECONDS: Final = 5.0  # that a body may take beyond what it takes at the slowest rate
_SLOWEST_BODY: Final = 16_384  # bytes in a second
_BACKLOG: Final = 512
_CONNECTIONS_BESIDE_THREADS: Final = 1000  # idle keep-alive connections, which hold no thread
log = get_logger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; then streams end, requests in progress are answered, and `SystemExit` is raised.

    Raises `PortInUse`, or `SettingsError` when the address cannot be listened on, before anything is started.
    """
    configure_logs(settings, "web")
    app = create_app(settings)  # connects to nothing yet, so the worker process can inherit it
    listener = listen(settings.web_host, settings.web_port)
    log.info("web.started", host=settings.web_host, port=listener.getsockname()[1], threads=settings.web_threads)
    _Application(app, settings, listener.detach()).run()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; gunicorn gets it as it is, so nobody can take the port in between."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            undo.pop_all()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(port, variable_name("web_port")) from None
        reason = error.strerror or str(error)
        raise SettingsError(
            f"{variable_name('web_host')}, {variable_name('web_port')}: cannot listen on {host}:{port}: {reason}"
        ) from None
    return listener


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn, configured by our settings alone: no command line, no file, no environment."""

    def __init__(self, app: Flask, settings: Settings, listener: int) -> None:
        self._app, self._settings, self._listener = app, settings, listener
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._configuration().items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._app

    def _configuration(self) -> dict[str, Any]:
        return {
            "bind": f"fd://{self._listener}",
            "workers": 1,
            "worker_class": StreamingWorker,
            "threads": self._settings.web_threads,
            "worker_connections": self._settings.web_threads + _CONNECTIONS_BESIDE_THREADS,
            "backlog": _BACKLOG,
            "keepalive": _KEEP_ALIVE_SECONDS,
            "graceful_timeout": _GRACE_SECONDS,
            "logger_class": _Log,
            "loglevel": "warning",
            "proc_name": "penstock-web",
            "control_socket_disable": True,
        }


class StreamingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's threaded worker, made fit for long streams, for slow clients and for leaving in time.

    No thread waits for a request's head: a connection that has not sent all of it is parked until the rest is there.
    Only for a moment after an answer does its thread stay, if nobody waits for it: who asks again at once is served
    without the thread that accepts, which every other request has to pass through twice.
    A body must come at a rate, else 408, and the connection ends: what is left of the body would come before the next
    request.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._parked: list[tuple[TConn, float]] = []
        self._unserved: deque[TConn] = deque()  # connections that wait for a thread

    def enqueue_req(self, conn: TConn) -> None:
        """Runs in the main thread."""
        self._unserved.append(conn)
        super().enqueue_req(conn)

    def handle(self, conn: TConn) -> object:
        """Runs in a thread of the pool and lingers there; gunicorn would in the thread that accepts for everybody."""
        self._unserved.popleft()
        if not conn.wait_for_data(_HEAD_LOOKS[-1]) or not any(_is_served(conn.sock, after) for after in _HEAD_LOOKS):
            return _PARKED
        keep = super().handle(conn)
        while keep and self.alive and (_has_read_ahead(conn) or self._comes_soon(conn)):
            conn.parser.unreader.sock = _HastySocket(conn.sock)
            keep = super().handle(conn)
        if not keep or not self.alive:
            _linger(conn.sock)
        return keep

    def _comes_soon(self, conn: TConn) -> bool:
        """Whether the next request is there within a moment, and nobody else waits for a thread before that."""
        if self._unserved:
            return False
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(_STAY_MILLISECONDS)) and _is_served(conn.sock)

    def handle_request(self, req: Any, conn: TConn) -> object:
        """The body is read within its time."""
        reader = req.unreader
        reader.sock = _HastySocket(conn.sock, req.force_close)
        try:
            return super().handle_request(req, conn)
        finally:
            reader.sock = conn.sock

    def finish_request(self, conn: TConn, fs: Future[object]) -> None:
        """Runs in the main thread, as does the next."""
        if not fs.cancelled() and fs.exception() is None and fs.result() is _PARKED and self.alive:
            self._parked.append((conn, time.monotonic() + _HEAD_SECONDS))
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Every second: whose head has come is served, whose has not in its time is closed."""
        super().murder_pending()
        waiting, self._parked = self._parked, []
        for conn, deadline in waiting:
            if _is_served(conn.sock):
                conn.data_ready = True
                self.enqueue_req(conn)
            elif self.alive and time.monotonic() < deadline:
                self._parked.append((conn, deadline))
            else:
                self.nr_conns -= 1
                conn.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends what would outlast the grace: idle connections and streams. Runs in the main thread."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(self._close_idle)
        self.app.wsgi().extensions["penstock"].stop_streams()

    def _close_idle(self) -> None:
        for connection in (*self.keepalived_conns, *self.pending_conns):
            connection.timeout = 0.0
        self.murder_keepalived()
        self.murder_pending()


_PARKED: Final = object()


class _HastySocket:
    """A connection that a request is read from, for so long as its bytes allow."""

    def __init__(self, connection: socket.socket, give_up: Callable[[], None] = lambda: None) -> None:
        self._connection = connection
        self._give_up = give_up
        self._deadline = time.monotonic() + _BODY_SECONDS

    def recv(self, most: int) -> bytes:
        """Gives the connection up and raises `RequestTimeout`, which is answered with 408."""
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            data = self._connection.recv(most)
        except TimeoutError:
            self._give_up()
            raise RequestTimeout(f"the request came slower than {_SLOWEST_BODY} bytes in a second") from None
        finally:
            self._connection.settimeout(None)
        self._deadline += len(data) / _SLOWEST_BODY
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _has_read_ahead(conn: TConn) -> bool:
    """Whether the next request, or its beginning, was read together with what was left of the last one's body.

    Nobody else would look for it there.
    """
    return bool(conn.parser.unreader.buf.getvalue())


def _is_served(connection: socket.socket, after: float = 0.0) -> bool:
    """Whether, after so many seconds, a whole head is there; or so much that it is none, or the client has left."""
    time.sleep(after)
    try:
        seen = connection.recv(_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not seen or b"\r\n\r\n" in seen or len(seen) >= _HEAD_BYTES


def _linger(connection: socket.socket) -> None:
    """Say that no more will come and wait for the other end to close, so that it gets to read all (RFC 9112, 9.6)."""
    deadline = time.monotonic() + _LINGER_SECONDS
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (remaining := deadline - time.monotonic()) > 0:
            connection.settimeout(remaining)
            if not connection.recv(4096):
                break
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Log(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's messages go where all of ours go."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.loglevel = logging.WARNING
        for logger in (self.error_log, self.access_log):
            logger.setLevel(self.loglevel)
            logger.propagate = True
