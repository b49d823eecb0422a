"""One HTTP try: a connection to a checked address, one deadline over all of it, no redirect followed."""

import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import httpcore
import httpx

from penstock.errors import AddressRefused
from penstock.webhooks.guard import Resolver, Target, check, resolve
from penstock.webhooks.retries import Answer

KEPT_BODY_BYTES: Final = 2048
_RETRY_AFTER: Final = b"retry-after"


class Sender:
    """Sends webhook bodies. Thread-safe. Each try has its own connection: a kept one would outlive its check."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        allow_loopback: bool,
        resolver: Resolver = resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout, self._allow_loopback, self._resolver = timeout_seconds, allow_loopback, resolver
        self._ssl = ssl_context or httpx.create_ssl_context()

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST `body` and say what came of it; whatever goes wrong on the way is an answer, not an exception."""
        started = time.monotonic()
        try:
            target = check(url, allow_loopback=self._allow_loopback, resolver=self._resolver)
            found = self._exchange(target, headers, body, _Deadline(started + self._timeout))
        except AddressRefused as error:
            found = {"error": error.message, "refused": True}
        except httpcore.TimeoutException:
            found = {"error": f"no complete answer within {self._timeout:g} s"}
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        return Answer(milliseconds=round((time.monotonic() - started) * 1000), **found)

    def _exchange(
        self, target: Target, headers: Mapping[str, str], body: bytes, deadline: "_Deadline"
    ) -> dict[str, Any]:
        backend = _PinnedBackend(target.addresses, deadline)
        with (
            httpcore.ConnectionPool(ssl_context=self._ssl, network_backend=backend, keepalive_expiry=0) as pool,
            pool.stream(
                "POST",
                str(target.url),
                headers=[("Host", target.url.netloc.decode("ascii")), *headers.items()],
                content=body,
            ) as response,
        ):
            answered = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            kept = _first_bytes(response.iter_stream(), KEPT_BODY_BYTES)
            return {
                "status": response.status,
                "body": kept.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}"),
                "retry_after": answered.get(_RETRY_AFTER),
            }


def _first_bytes(chunks: Iterable[bytes], wanted: int) -> bytes:
    kept = b""
    for chunk in chunks:
        kept += chunk[: wanted - len(kept)]
        if len(kept) == wanted:
            break
    return kept


class _Deadline:
    """One moment that every operation of a try must end before: a receiver that drips bytes does not hold a thread."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def left(self, error: Callable[[], Exception]) -> float:
        seconds = self._moment - time.monotonic()
        if seconds <= 0:
            raise error()
        return seconds


# ruff: noqa: ARG002 - httpcore's interface gives a host, which was resolved, and time-outs, which the deadline replaces


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to the checked addresses, whatever name it is asked for, so that nothing is resolved a second time."""

    def __init__(self, addresses: tuple[str, ...], deadline: _Deadline) -> None:
        self._addresses, self._deadline = addresses, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("no address to connect to")
        for address in self._addresses:
            left = self._deadline.left(httpcore.ConnectTimeout)
            try:
                connected = self._sockets.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _DeadlineStream(connected, self._deadline)
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every operation ends before the try's deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
