"""The web process as it really runs: gunicorn in a process of its own, over HTTP."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from penstock.embedded.errors import PortInUse
from penstock.embedded.ports import choose
from penstock.errors import SettingsError
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock.web import _GRACE_SECONDS, listen

from tests.platform.api.conftest import Caller, Worker, read_events

_PROGRAM = """
import sys
from penstock import app, web
from penstock.settings import Settings
from tests.factories import WordCounter
create_app = app.create_app
web.create_app = lambda settings: create_app(settings, prompts=WordCounter())
web.serve(Settings.from_environment())
"""


class Web:
    """A running web process."""

    def __init__(self, settings: Settings) -> None:
        self.port = choose(None, None, "")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], env=_environment(settings, self.port), stderr=subprocess.PIPE
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def use_key(self, key: str) -> None:
        self.client.headers["Authorization"] = f"Bearer {key}"

    def wait_until_it_answers(self) -> None:
        while True:
            assert self.process.poll() is None, self.process.stderr.read().decode() if self.process.stderr else ""
            try:
                self.client.get("/healthz").raise_for_status()
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


def _environment(settings: Settings, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path.cwd()),
        "PENSTOCK_DATABASE_URL": settings.database_url.get_secret_value(),
        "PENSTOCK_REDIS_URL": settings.redis_url.get_secret_value(),
        "PENSTOCK_SECRET_KEY": settings.secret_key.get_secret_value(),
        "PENSTOCK_ENVIRONMENT": settings.environment,
        "PENSTOCK_WEB_PORT": str(port),
        "PENSTOCK_WEB_THREADS": "16",
    }


def start(settings: Settings) -> Iterator[Web]:
    running = Web(settings)
    try:
        running.wait_until_it_answers()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def lasting_web(settings: Settings) -> Iterator[Web]:
    """One process for the tests that leave it running."""
    yield from start(settings)


@pytest.fixture
def own_web(settings: Settings, caller: Caller, deployment: Deployment) -> Iterator[Web]:
    """A process for a test that stops it."""
    for running in start(settings):
        running.use_key(caller.key)
        yield running


@pytest.fixture
def web(lasting_web: Web, caller: Caller, deployment: Deployment) -> Web:
    lasting_web.use_key(caller.key)
    return lasting_web


def submit(web: Web) -> str:
    answer = web.client.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": "hello"}})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def test_a_job_is_submitted_and_watched_to_its_end_over_http(web: Web, worker: Worker) -> None:
    job_id = submit(web)
    with web.client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = read_events(response.iter_text())
        assert next(events).type == "job.queued"
        worker.claim()
        worker.write("Hi")
        assert [next(events).type, next(events).data["text"]] == ["job.running", "Hi"]
        worker.finish()
        assert [event.type for event in events] == ["output.delta", "job.succeeded"]


def test_on_sigterm_streams_end_requests_are_answered_and_the_process_goes(own_web: Web) -> None:
    web = own_web
    job_id = submit(web)
    body = {"model": "tiny", "input": {"prompt": "hello"}}
    with ThreadPoolExecutor() as pool, web.client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        events = read_events(response.iter_text())
        assert next(events).type == "job.queued"
        waiting = pool.submit(web.client.post, "/v1/jobs", json=body, headers={"Prefer": "wait=60"})
        while len(web.client.get("/v1/jobs").json()["data"]) < 2:
            time.sleep(0.01)
        web.process.send_signal(signal.SIGTERM)

        assert list(events) == []
        assert waiting.result().status_code == 202
    assert web.process.wait(timeout=_GRACE_SECONDS - 1) == 0  # idle connections did not hold it up


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_however_it_is_sent(web: Web, settings: Settings, *, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(settings.max_body_bytes // 65536 + 1):
            yield b" " * 65536

    body = chunks() if chunked else b" " * (settings.max_body_bytes + 1)
    answer = web.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_body_in_chunks_is_read(web: Web) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"model": "tiny", '
        yield b'"input": {"prompt": "hello"}}'

    answer = web.client.post("/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 202


@pytest.mark.timeout(30)  # closed one after another by the accepting thread, they would cost two seconds each
def test_clients_that_do_not_hang_up_hold_up_nobody_else(web: Web) -> None:
    with ExitStack() as idlers:
        for _ in range(20):
            idler = idlers.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            idler.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert idler.recv(15) == b"HTTP/1.1 200 OK"
            assert web.client.get("/healthz").status_code == 200


def test_a_port_that_is_taken_is_named_before_anything_starts(settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}.*PENSTOCK_WEB_PORT"):
            listen("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_WEB_HOST"):
        listen("192.0.2.1", 8080)
    with pytest.raises(SettingsError, match="PENSTOCK_WEB_HOST"):
        listen("no-such-host.invalid", 8080)


def test_a_request_that_came_with_the_rest_of_the_last_one_is_answered(web: Web) -> None:
    """The first is refused before its body is read; what is read to be rid of that holds the second one too."""
    body = b'{"model": "tiny", "input": {"prompt": "hello"}}'
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    keys = (b"psk_wrong", web.client.headers["Authorization"].removeprefix("Bearer ").encode())
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as connection:
        connection.sendall(b"".join(head + b"Authorization: Bearer %b\r\n\r\n%b" % (key, body) for key in keys))
        had = b""
        while len(statuses := re.findall(rb"HTTP/1.1 (\d+) ", had)) < 2:
            more = connection.recv(65536)
            assert more, "the connection was closed without the second answer"
            had += more
    assert statuses == [b"401", b"202"]
