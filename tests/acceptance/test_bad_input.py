"""Whatever is sent, the answer is an error that says what is wrong, or a bounded cost: never a crash."""

import io
import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPResponse
from typing import Any, Final

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from penstock.db import Database
from penstock.jobs import intake, lease
from penstock.jobs.journal import Journal, JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.states import JobState
from penstock.registry import vocabulary as vocabulary_module
from penstock.registry.models import Deployment
from penstock.settings import Settings
from redis import Redis
from schemathesis import Case, GenerationMode
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.factories import WordCounter, make_worker
from tests.platform.api.conftest import (
    BODY,
    Caller,
    Worker,
    app,
    caller,
    deployment,
    make_caller,
    plain_logs,
    worker,
)
from tests.platform.api.test_web import Web

__all__ = ["app", "caller", "deployment", "make_caller", "plain_logs", "worker"]  # fixtures

pytestmark = pytest.mark.usefixtures("deployment")
EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "3"))
"""Of each operation and kind; set it high for a long run by hand."""
SECRET: Final = "tell-nobody"
NATIVE, CHAT, RESPONSES = "/v1/jobs", "/v1/chat/completions", "/v1/responses"


class Answering(threading.Thread):
    """Serves each job at once with nothing, so that no call waits."""

    def __init__(self, database: Database, redis: Redis, deployment: Deployment) -> None:
        super().__init__(name="answering")
        with database.transaction() as session:
            self._id = make_worker(session, session.merge(deployment, load=False)).id
        self._database, self._journal, self._deployment = database, Journal(redis, publisher="answering"), deployment.id
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.is_set():
            if not self._serve():
                self._ending.wait(0.01)

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def _serve(self) -> bool:
        with self._database.transaction() as session:
            claim = lease.claim(session, worker_id=self._id, deployment_id=self._deployment, lease_seconds=30)
            if claim is None:
                return False
            end = [JournalEntry(0, 0, None, "", None, claim.fence, "stop")]
            lease.finish(session, Held(claim.job.id, claim.fence), Finish(JobState.SUCCEEDED, end, prompt_tokens=1))
        self._journal.announce([claim.job.id])
        return True


@pytest.fixture
def answering(database: Database, redis: Redis, deployment: Deployment) -> Iterator[None]:
    thread = Answering(database, redis, deployment)
    thread.start()
    yield
    thread.stop()


@pytest.mark.usefixtures("answering")
@pytest.mark.timeout(0 if EXAMPLES > 3 else 300)
def test_nothing_that_the_document_allows_or_forbids_crashes_the_server(app: Flask, caller: Caller) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    schema.config.update(base_url="http://localhost")
    crashes: list[str] = []

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """Bodies that name a model name the one that there is, so that what is behind is reached."""
        return body | {"model": "tiny"} if isinstance(body, dict) and isinstance(body.get("model"), str) else body

    for found in schema.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]  # a part of the document that cannot be read raises
        for mode in GenerationMode:
            _exercise(operation.as_strategy(generation_mode=mode), caller, crashes)
    assert not crashes, "\n".join(crashes)


def _exercise(cases: st.SearchStrategy[Case[Any]], caller: Caller, crashes: list[str]) -> None:
    @seed(20261121)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def send(case: Case[Any]) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {caller.key}"})
        if answer.status_code >= 500:
            crashes.append(f"{answer.status_code} {case.as_curl_command()}: {answer.text[:300]}")

    send()


def send(caller: Caller, path: str, data: bytes | str, **headers: str) -> Any:
    named = {"Authorization": f"Bearer {caller.key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return caller.client.post(path, data=data, content_type="application/json", headers=named)


def asked(path: str, member: str) -> bytes:
    """A call that would be fine without the `member` at its end."""
    said = {
        NATIVE: '"input": {"prompt": "x"}',
        CHAT: '"messages": [{"role": "user", "content": "x"}]',
        RESPONSES: '"background": true, "input": "x"',
    }
    return f'{{"model": "tiny", {said[path]}, {member}}}'.encode("utf-8", "surrogateescape")


def told(answer: Any) -> tuple[int, str, str | None]:
    """Status, code and field, in either envelope."""
    document = answer.json
    error = document.get("error", document)
    return answer.status_code, error["code"], error.get("param", error.get("field"))


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
WRONG: Final = {
    "not UTF-8": ('"metadata": {"a": "\udcff"}', "invalid_json", None),
    "a lone surrogate": ('"metadata": {"a": "\\ud800"}', "invalid_json", None),
    "a lone surrogate in a name": ('"metadata": {"\\udfff": "a"}', "invalid_json", None),
    "NUL": ('"metadata": {"a": "x\\u0000"}', "invalid_value", "metadata.a"),
    "NUL in a name": ('"metadata": {"a\\u0000": "x"}', "invalid_value", "metadata.key"),
    "a bare NUL": ('"metadata": {"a": "\0"}', "invalid_json", None),
    "deep": (f'"metadata": {DEEP}', "invalid_json", None),
    "twice": ('"metadata": {}, "metadata": {}', "invalid_value", "metadata"),
    "twice within": ('"metadata": {"a": "1", "a": "2"}', "invalid_value", "a"),
    "twice the model": ('"model": "tiny"', "invalid_value", "model"),
    "an endless number": (f'"metadata": {{"a": {"9" * 5000}}}', "invalid_json", None),
}


@pytest.mark.parametrize("path", [NATIVE, CHAT, RESPONSES])
@pytest.mark.parametrize("kind", WRONG)
def test_what_no_json_may_be_is_refused_by_name(caller: Caller, path: str, kind: str) -> None:
    member, code, field = WRONG[kind]
    invalid = "validation_failed" if path == NATIVE else "invalid_value"
    status = 422 if path == NATIVE and code == "invalid_value" else 400

    answer = told(send(caller, path, asked(path, member)))
    assert answer == (status, invalid if code == "invalid_value" else code, field)
    assert caller.get(NATIVE).json["data"] == []


SCHEMAS: Final = {
    NATIVE: ('"params": {"response_format": {"type": "json_schema", "schema": %s}}', "params.response_format.schema"),
    CHAT: (
        '"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": %s}}',
        "response_format.json_schema.schema",
    ),
    RESPONSES: ('"text": {"format": {"type": "json_schema", "name": "s", "schema": %s}}', "text.format.schema"),
}


@pytest.mark.parametrize("path", [NATIVE, CHAT, RESPONSES])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_lacks_are_refused_where_anything_goes(caller: Caller, path: str, number: str) -> None:
    answer = send(caller, path, asked(path, SCHEMAS[path][0] % f'{{"const": {number}}}'))

    assert told(answer)[:2] == (400, "invalid_json")
    assert number in answer.text


@pytest.mark.parametrize("path", [NATIVE, CHAT, RESPONSES])
@pytest.mark.parametrize(
    "schema", ['{"const": 1%s}' % ("0" * 400), '{"not": {}}', '{"$ref": "#/nowhere"}', '{"type": 5}']
)
def test_schemas_that_cannot_be_kept_to_are_refused_by_name(caller: Caller, path: str, schema: str) -> None:
    member, field = SCHEMAS[path]
    status, _, named = told(send(caller, path, asked(path, member % schema)))

    assert (status, named) == (422 if path == NATIVE else 400, field)


@pytest.mark.parametrize("path", [NATIVE, CHAT, RESPONSES])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused(caller: Caller, path: str, declared: bool) -> None:
    data = asked(path, f'"metadata": {{"a": "{"x" * 1_100_000}"}}')
    body: Any = {"data": data} if declared else {"input_stream": io.BytesIO(data)}
    headers = {"Authorization": f"Bearer {caller.key}"}
    answer = caller.client.post(path, headers=headers, content_type="application/json", **body)

    assert told(answer)[:2] == (413, "body_too_large")


@pytest.mark.parametrize(
    "id_",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "a%0d%0aX-Injected:%201",
        "%00",
        "%ff%fe",
        "%ED%A0%80",
        "'%20OR%201=1--",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize(
    "path", [f"{NATIVE}/%s", f"{NATIVE}/%s/events", f"{RESPONSES}/%s", f"{RESPONSES}/%s/input_items"]
)
def test_an_id_that_is_none_names_nothing(caller: Caller, path: str, id_: str) -> None:
    answer = caller.get(path % id_)

    assert told(answer)[:2] == (404, "not_found")
    assert "X-Injected" not in answer.headers
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Idempotency_Key", "x\x7f", 422),
        ("Idempotency_Key", "é", 422),
        ("Idempotency_Key", "k" * 300, 422),
        ("Prefer", "wait=²", 422),
        ("Prefer", "wait=" + "9" * 4000, 202),
        ("traceparent", "00-" + "\xff" * 32, 202),
    ],
)
def test_headers_of_any_kind_are_judged_or_left(caller: Caller, header: str, value: str, status: int) -> None:
    body = BODY | ({"model": "nobody"} if header == "Prefer" and status == 202 else {})
    answer = caller.post(NATIVE, body, **{header: value})

    assert answer.status_code == (404 if "nobody" in body.values() else status), answer.text


@pytest.mark.parametrize(
    "query", ["after=%00", "limit=1e9", "limit=٣", "status=queued&status=running", "%ff=1", "limit="]
)
def test_a_query_that_is_wrong_is_refused_by_name(caller: Caller, query: str) -> None:
    answer = caller.get(f"{NATIVE}?{query}")

    assert told(answer)[:2] == (422, "validation_failed")
    assert answer.json["field"]


def test_an_error_of_the_database_tells_no_row(
    app: Flask, caller: Caller, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_draw_seed", lambda: None)  # the row then breaks a constraint, and is told in DETAIL
    app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = caller.post(NATIVE, BODY | {"input": {"prompt": SECRET}})

    assert answer.status_code == 500
    logged = "".join(capsys.readouterr())
    assert "request.crashed" in logged
    assert "SQLSTATE 23502: job.seed" in logged
    assert SECRET not in logged + answer.text
    with pytest.raises(DBAPIError) as quoted, database.transaction() as session:
        session.execute(text("SELECT CAST(:value AS integer)"), {"value": SECRET})
    assert "SQLSTATE 22P02" in str(quoted.value)
    assert SECRET not in str(quoted.value)


def test_structure_is_judged_where_no_transaction_is_open(
    app: Flask, caller: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = WordCounter().vocabulary(None)  # type: ignore[arg-type]  # that of the demo model, whatever is asked
    monkeypatch.setattr(WordCounter, "vocabulary", lambda *_: vocabulary)
    open_then: list[int] = []

    def watched(*asked: Any) -> str:
        open_then.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]  # a queue pool has it
        return compiled(*asked)

    compiled = vocabulary_module._problem
    monkeypatch.setattr(vocabulary_module, "_problem", watched)
    form = {"type": "regex", "regex": "a+"}
    assert caller.post(NATIVE, BODY | {"params": {"response_format": form}}).status_code == 202
    assert caller.post(NATIVE, BODY | {"params": {"response_format": form | {"regex": "a("}}}).status_code == 422
    assert caller.post(RESPONSES, {"model": "tiny", "input": "x", "background": True, "text": TEXT}).status_code == 200
    assert open_then == [0, 0, 0]


TEXT: Final = {"format": {"type": "json_schema", "name": "s", "schema": {"type": "integer"}}}


def test_a_flood_of_cancels_cancels_once(app: Flask, caller: Caller, worker: Worker) -> None:
    job_id = caller.submit()
    worker.claim()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _cancel(app, caller, job_id), range(60)))

    assert set(answers) == {202}
    kinds = [event["type"] for event in caller.get(f"{NATIVE}/{job_id}").json["timeline"]]
    assert kinds == ["job.queued", "job.running", "job.cancel_requested"]


def _cancel(app: Flask, caller: Caller, job_id: str) -> int:
    headers = {"Authorization": f"Bearer {caller.key}"}
    return app.test_client().post(f"{NATIVE}/{job_id}/cancel", headers=headers).status_code


@pytest.fixture
def web(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    running = Web(settings)
    with closing(running):
        running.wait_until_it_answers()
        yield running


HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_slow_clients_stop_nobody(web: Web, caller: Caller) -> None:
    """More of them than there are threads: idle, with half a head, and with half a body."""
    web.use_key(caller.key)
    with ExitStack() as held:
        for sent in (b"", HEAD, HEAD + f"Authorization: Bearer {caller.key}\r\nContent-Length: 99\r\n\r\n{{".encode()):
            for _ in range(20):
                slow = held.enter_context(socket.create_connection(("127.0.0.1", web.port)))
                slow.sendall(sent)
        assert web.client.get("/healthz").status_code == 200
        assert web.client.post(NATIVE, json=BODY).status_code == 202
        slow.settimeout(30)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))  # head and body may come in pieces; then it is closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert b'"code": "request_timeout"' in answer
        _send_in_pieces(held.enter_context(socket.create_connection(("127.0.0.1", web.port), timeout=30)), caller.key)


def _send_in_pieces(connection: socket.socket, key: str) -> None:
    """A head that comes slowly is a head all the same, also the second on one connection."""
    body = json.dumps(BODY).encode()
    head = HEAD + f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(2):
        connection.sendall(head[:90])
        assert select.select([connection], [], [], 0.5) == ([], [], [])
        connection.sendall(head[90:] + body)
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 202
        answer.read()  # all of it: what is left of one would be taken for the next
