"""Clients that cost little beside what they measure: bare HTTP connections, kept open, and readers of many streams."""

import http.client
import json
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from bench.platform_parts.house import House

_TOKEN: Final = b"event: output.delta"


@dataclass(frozen=True)
class Latency:
    """Milliseconds of so many calls."""

    calls: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        ordered = sorted(seconds)

        def at(percent: int) -> float:
            return round(1000 * ordered[min(len(ordered) * percent // 100, len(ordered) - 1)], 2)

        return cls(len(ordered), round(1000 * statistics.median(ordered), 2), at(95), at(99))


class Caller:
    """One client with one connection. Every answer that is no success ends the bench."""

    def __init__(self, house: House) -> None:
        self._headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def submit(self, body: bytes, *, wait: int = 0) -> dict[str, Any]:
        """The job's document, once it is queued; with `wait`, once it is over, within so many seconds."""
        preference = {"Prefer": f"wait={wait}"} if wait else {}
        self._connection.request("POST", "/v1/jobs", body, self._headers | preference)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == (200 if wait else 202), f"{answer.status}: {text!r}"
        document: dict[str, Any] = json.loads(text)
        return document

    def health(self) -> None:
        """The cheapest question that there is."""
        self._connection.request("GET", "/healthz")
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    def first_event(self, job_id: str, began: float) -> tuple[float, float]:
        """Seconds since `began` to the stream's first event, and to its first token; the stream is read to its end."""
        self._connection.request("GET", f"/v1/jobs/{job_id}/events", headers=self._headers)
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.status
        first = token = 0.0
        for line in answer:
            if line.startswith(b"event:"):
                first = first or time.perf_counter() - began
            if line.startswith(_TOKEN):
                token = token or time.perf_counter() - began
        assert first, "the stream had no event"
        assert token, "the stream had no token"
        return first, token


def at_once(house: House, clients: int, work: Callable[[Caller, int], list[float]]) -> tuple[list[float], float]:
    """What each client's `work` measured, and the seconds from the first's begin to the last's end."""

    def one(number: int) -> list[float]:
        with Caller(house) as caller:
            return work(caller, number)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        measured = [seconds for many in pool.map(one, range(clients)) for seconds in many]
    return measured, time.perf_counter() - began


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


@dataclass
class Readers:
    """Readers of one job's stream each, all on one thread, which counts what comes and keeps nothing.

    `heard` are those whose stream has begun, `failed` those of them that got no stream, `ended` those whose has ended.
    """

    house: House
    tokens: int = 0
    heard: int = 0
    ended: int = 0
    failed: int = 0
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _thread: threading.Thread = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _tails: dict[socket.socket, bytes] = field(default_factory=dict)  # in which a token's event may have begun

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)

    @contextmanager
    def reading(self, job_ids: Sequence[str]) -> Iterator[Self]:
        """One reader for each job while the block runs, or until they are closed."""
        for job_id in job_ids:
            connection = socket.create_connection(("127.0.0.1", self.house.port), timeout=30)
            head = (f"GET /v1/jobs/{job_id}/events HTTP/1.1", "Host: bench", f"Authorization: Bearer {self.house.key}")
            connection.sendall("\r\n".join((*head, "", "")).encode())
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
        self._thread.start()
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """Hang up on every stream that has not ended."""
        self._stop.set()
        self._thread.join()
        for key in list((self._selector.get_map() or {}).values()):
            self._drop(key.fileobj)

    def _read(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                self._take(key.fileobj)

    def _take(self, connection: Any) -> None:
        data = connection.recv(65536)
        if connection not in self._tails and data:
            self.heard += 1
            self.failed += not data.startswith(b"HTTP/1.1 200")
        seen = self._tails.get(connection, b"") + data
        self.tokens += seen.count(_TOKEN)
        self._tails[connection] = seen[1 - len(_TOKEN) :]
        if not data or data.endswith(b"0\r\n\r\n"):
            self.ended += 1
            self._drop(connection)

    def _drop(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()
