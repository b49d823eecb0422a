"""A small real HTTP server that misbehaves on purpose: it answers by a script and keeps what it was asked."""

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What to answer. With `cut` the connection is reset after the body; `hang_up` resets it before any answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: bool = False
    hang_up: bool = False


def as_json(document: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"Content-Type": "application/json", **named}, json.dumps(document).encode())


def problem(code: str, status: int, **members: Any) -> Reply:
    """A problem document."""
    headers = members.pop("headers", {})
    document = {"type": "x", "title": "A title", "status": status, "code": code, "detail": "a detail"} | members
    return Reply(status, {"Content-Type": "application/problem+json", **headers}, json.dumps(document).encode())


def stream(text: str, *, cut: bool = False) -> Reply:
    """An event stream."""
    return Reply(200, {"Content-Type": "text/event-stream"}, text.encode(), cut=cut)


class Misbehaving(ThreadingHTTPServer):
    """Answers with `replies` in order; then, and after `always` was set, with that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        self.replies: deque[Reply] = deque()
        self.always = problem("not_found", 404)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that this server resets raise in its own handlers."""


class _Handler(BaseHTTPRequestHandler):
    server: Misbehaving
    protocol_version = "HTTP/1.0"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, self.path, headers, body))
        reply = self.server.replies.popleft() if self.server.replies else self.server.always
        if not reply.hang_up:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if not reply.cut and "text/event-stream" not in reply.headers.values():
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
        if reply.cut or reply.hang_up:
            self._reset()

    do_GET = do_POST = _answer

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `asked` instead."""


@contextmanager
def misbehaving() -> Iterator[Misbehaving]:
    """Such a server, while the block runs."""
    server = Misbehaving()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


JOB: dict[str, Any] = {
    "id": "job_01",
    "object": "job",
    "kind": "generate",
    "status": "queued",
    "model": "tiny",
    "model_name": "tiny",
    "model_version": "3",
    "routing": {"rule": "alias", "alias": "champion"},
    "input": {"prompt": "hello"},
    "params": {"temperature": 0.0, "seed": 7},
    "class": "interactive",
    "priority": 0,
    "deadline": None,
    "tags": [],
    "metadata": {},
    "webhook": None,
    "retry_of": None,
    "output": None,
    "error": None,
    "usage": {"prompt_tokens": 3, "cached_tokens": 0, "output_tokens": 0},
    "runs": 0,
    "cancel_requested_at": None,
    "created_at": "2026-11-21T10:00:00.000Z",
    "queued_at": "2026-11-21T10:00:00.000Z",
    "started_at": None,
    "first_token_at": None,
    "finished_at": None,
}
FINISHED = JOB | {
    "status": "succeeded",
    "runs": 1,
    "output": {"choices": [{"index": 0, "text": "Hé\u2028llo", "token_ids": [5, 6, 7], "finish_reason": "stop"}]},
    "usage": {"prompt_tokens": 3, "cached_tokens": 0, "output_tokens": 3},
    "started_at": "2026-11-21T10:00:00.100Z",
    "first_token_at": "2026-11-21T10:00:00.250Z",
    "finished_at": "2026-11-21T10:00:01.000Z",
}


def state_event(number: int, kind: str, at: int = 0, **data: Any) -> str:
    """A state event as the server writes it."""
    job = {"job": FINISHED | {"status": kind}} if kind in ("succeeded", "failed") else {}
    name = kind if "." in kind else f"job.{kind}"
    document = {"number": number, "type": name, "data": data, "created_at": "2026-11-21T10:00:00.100Z"} | job
    return f"id: {number}.{at}\nevent: {name}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n"


def token_event(event: int, position: int, text: str, token_id: int | None = 5, reason: str | None = None) -> str:
    """A token as the server writes it; its id counts it as had."""
    document = {"position": position, "choice": 0, "index": position, "token_id": token_id, "text": text}
    if reason is not None:
        document["finish_reason"] = reason
    return f"id: {event}.{position + 1}\nevent: output.delta\ndata: {json.dumps(document, ensure_ascii=False)}\n\n"


WHOLE_STREAM = [
    state_event(1, "queued"),
    state_event(2, "running", run=1),
    token_event(2, 0, "Hé"),
    token_event(2, 1, "\u2028"),
    token_event(2, 2, "llo"),
    token_event(2, 3, "", None, "stop"),
    state_event(3, "succeeded", 4),
]
