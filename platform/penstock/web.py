"""The web process: gunicorn, run from here, with one worker of many threads.

One worker, because its threads wait (for PostgreSQL, for tokens) more than they compute; more machines run more.
"""

import errno
import logging
import socket
import time
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any, Final

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn, ThreadWorker

from penstock.app import create_app
from penstock.embedded.errors import PortInUse
from penstock.errors import SettingsError
from penstock.logs import configure_logs, get_logger
from penstock.settings import Settings, variable_name

_GRACE_SECONDS: Final = 10
_KEEP_ALIVE_SECONDS: Final = 15
_LINGER_SECONDS: Final = 1.0
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
    """gunicorn's threaded worker, made fit for long streams and for leaving in time."""

    def handle(self, conn: TConn) -> object:
        """Runs in a thread of the pool and lingers there; gunicorn would in the thread that accepts for everybody."""
        keep = super().handle(conn)
        if not keep or not self.alive:
            _linger(conn.sock)
        return keep

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
