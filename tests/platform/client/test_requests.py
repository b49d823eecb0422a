"""What the client sends, when it tries again, and what it raises."""

import json
import socket
from datetime import UTC, datetime

import pytest
from penstock import Client
from penstock.client import ConnectionFailed, JobState, UnexpectedAnswer, UnknownProblem, WaitTimedOut, backoff
from penstock.errors import (
    Forbidden,
    JobAlreadyFinished,
    ModelNotFound,
    NotFound,
    PenstockError,
    QuotaExceeded,
    ServiceUnavailable,
    SettingsError,
    ValidationFailed,
)

from tests.platform.client.server import FINISHED, JOB, Misbehaving, Reply, as_json, problem

HANG_UP = Reply(hang_up=True)
BAD_GATEWAY = Reply(502, {"Content-Type": "text/html"}, b"<html>bad gateway")


def test_submit_sends_what_was_given_and_nothing_else(server: Misbehaving, client: Client) -> None:
    server.replies.append(as_json(JOB, 202))
    job = client.jobs.submit(model="tiny", prompt="hello")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/jobs")
    assert json.loads(asked.body) == {"model": "tiny", "input": {"prompt": "hello"}}
    assert asked.headers["authorization"] == "Bearer psk_test_x"
    assert asked.headers["user-agent"].startswith("penstock-python/")
    assert (job.id, job.status, job.job_class, job.text) == ("job_01", JobState.QUEUED, "interactive", "")


def test_submit_sends_everything_that_can_be_given(server: Misbehaving, client: Client) -> None:
    server.replies.append(as_json(JOB, 202))
    client.jobs.submit(
        model="tiny@challenger",
        messages=[{"role": "user", "content": "hi"}],
        params={"temperature": 0.0, "stop": ["\n"]},
        job_class="batch",
        priority=-3,
        deadline=datetime(2030, 1, 31, 12, tzinfo=UTC),
        webhook="https://example.com/hook",
        tags=["a"],
        metadata={"order": "1"},
        idempotency_key="mine",
    )
    assert json.loads(server.asked[0].body) == {
        "model": "tiny@challenger",
        "input": {"messages": [{"role": "user", "content": "hi"}]},
        "params": {"temperature": 0.0, "stop": ["\n"]},
        "class": "batch",
        "priority": -3,
        "deadline": "2030-01-31T12:00:00Z",
        "webhook": {"url": "https://example.com/hook"},
        "tags": ["a"],
        "metadata": {"order": "1"},
    }
    assert server.asked[0].headers["idempotency-key"] == "mine"


def test_every_submit_has_an_idempotency_key_of_its_own(server: Misbehaving, client: Client) -> None:
    server.always = as_json(JOB, 202)
    for _ in range(2):
        client.jobs.submit(model="tiny", prompt="x")
    first, second = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first != second


def test_members_that_are_new_are_kept(server: Misbehaving, client: Client) -> None:
    server.replies.append(as_json(JOB | {"carbon": 3}))
    assert '"carbon":3' in client.jobs.get("job_01").to_json()


def test_list_walks_the_pages_as_it_is_read(server: Misbehaving, client: Client) -> None:
    for number, after in ((1, "job_01"), (2, "job_02"), (3, None)):
        page = {
            "object": "list",
            "data": [JOB | {"id": f"job_0{number}"}],
            "has_more": after is not None,
            "next": after,
        }
        server.replies.append(as_json(page))
    found = client.jobs.list(
        status=[JobState.QUEUED, "running"], tag="a b", created_after=datetime(2026, 1, 1, tzinfo=UTC), page_size=1
    )
    assert next(found).id == "job_01"
    assert len(server.asked) == 1
    assert [job.id for job in found] == ["job_02", "job_03"]
    first = "/v1/jobs?status=queued%2Crunning&tag=a+b&created_after=2026-01-01T00%3A00%3A00Z&limit=1"
    assert [asked.path for asked in server.asked] == [first, f"{first}&after=job_01", f"{first}&after=job_02"]


def test_ids_cannot_leave_their_place_in_the_path(server: Misbehaving, client: Client) -> None:
    with pytest.raises(NotFound):
        client.jobs.get("../healthz?x=1")
    assert server.asked[0].path == "/v1/jobs/..%2Fhealthz%3Fx%3D1"


def test_models_and_the_webhook_secret(server: Misbehaving, client: Client) -> None:
    model = {
        "id": "tiny", "object": "model", "created": 1, "owned_by": "penstock", "version": "3",
        "champion_since": "2026-11-21T10:00:00.000Z", "challenger_version": None, "context_length": 256,
        "recipe": {"scheme": "none"}, "ready": True, "state": "ready",
    }  # fmt: skip
    server.replies.append(as_json({"object": "list", "data": [model]}))
    server.replies.append(as_json({"secret": "whsec_dGVzdA=="}))
    (found,) = client.models()
    assert (found.name, found.version, found.ready) == ("tiny", "3", True)
    assert client.webhook_secret() == "whsec_dGVzdA=="


@pytest.mark.parametrize(
    "failure", [HANG_UP, BAD_GATEWAY, problem("service_unavailable", 503), problem("quota_exceeded", 429)]
)
def test_a_get_is_tried_again(server: Misbehaving, client: Client, failure: Reply) -> None:
    server.replies.extend([failure, failure, as_json(JOB)])
    assert client.jobs.get("job_01").id == "job_01"
    assert len(server.asked) == 3


def test_but_not_for_ever(server: Misbehaving, client: Client) -> None:
    server.always = problem("service_unavailable", 503)
    with pytest.raises(ServiceUnavailable):
        client.jobs.get("job_01")
    assert len(server.asked) == 4


def test_a_broken_get_ends_as_connection_failed(server: Misbehaving, client: Client) -> None:
    server.always = HANG_UP
    with pytest.raises(ConnectionFailed, match=server.url):
        client.jobs.get("job_01")
    assert len(server.asked) == 4


OUTAGE = problem("service_unavailable", 503)
IN_USE = problem("idempotency_key_in_use", 409, headers={"Retry-After": "0"})


@pytest.mark.parametrize("failure", [HANG_UP, BAD_GATEWAY, OUTAGE, IN_USE])
def test_a_submit_that_may_have_arrived_is_repeated_with_its_key(
    server: Misbehaving, client: Client, failure: Reply
) -> None:
    server.replies.extend([failure, as_json(JOB, 202)])
    client.jobs.submit(model="tiny", prompt="x")
    first, second = server.asked
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


@pytest.mark.parametrize(("failure", "kind"), [(HANG_UP, ConnectionFailed), (OUTAGE, ServiceUnavailable)])
def test_a_cancel_that_may_have_arrived_is_not(
    server: Misbehaving, client: Client, failure: Reply, kind: type[PenstockError]
) -> None:
    server.replies.append(failure)
    with pytest.raises(kind):
        client.jobs.cancel("job_01")
    assert len(server.asked) == 1


def test_a_submit_that_was_refused_for_now_is_repeated_with_its_key(server: Misbehaving, client: Client) -> None:
    server.replies.extend([problem("quota_exceeded", 429), as_json(JOB, 202)])
    client.jobs.submit(model="tiny", prompt="x")
    first, second = server.asked
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_submit_that_never_left_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("penstock.client.transport.time.sleep", waits.append)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with Client(url, "psk_x", max_retries=4) as client, pytest.raises(ConnectionFailed, match="is the server running"):
        client.jobs.submit(model="tiny", prompt="x")
    assert len(waits) == 4


@pytest.mark.parametrize(("asked", "expected"), [("7", 7.0), ("60", 60.0)])
def test_retry_after_is_honoured(
    server: Misbehaving, client: Client, monkeypatch: pytest.MonkeyPatch, asked: str, expected: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("penstock.client.transport.time.sleep", waits.append)
    server.replies.extend([problem("quota_exceeded", 429, headers={"Retry-After": asked}), as_json(JOB)])
    client.jobs.get("job_01")
    assert waits == [expected]


def test_who_is_asked_to_come_back_much_later_is_told_at_once(server: Misbehaving, client: Client) -> None:
    server.replies.append(problem("quota_exceeded", 429, headers={"Retry-After": "3600"}))
    with pytest.raises(QuotaExceeded):
        client.jobs.get("job_01")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("not_found", 404, NotFound),
        ("model_not_found", 404, ModelNotFound),
        ("forbidden", 403, Forbidden),
        ("job_already_finished", 409, JobAlreadyFinished),
        ("validation_failed", 422, ValidationFailed),
    ],
)
def test_the_servers_errors_are_the_clients(
    server: Misbehaving, client: Client, code: str, status: int, kind: type[PenstockError]
) -> None:
    server.replies.append(problem(code, status, detail="params.top_p: too large", field="params.top_p", limit=1))
    with pytest.raises(kind) as caught:
        client.jobs.submit(model="tiny", prompt="x")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.status, error.field) == (code, status, "params.top_p")
    assert error.message == "params.top_p: too large"
    assert error.extra == {"limit": 1}


def test_an_error_that_is_not_known_keeps_code_and_status(server: Misbehaving, client: Client) -> None:
    server.replies.append(problem("teapot", 418))
    with pytest.raises(UnknownProblem, match="a detail") as caught:
        client.jobs.cancel("job_01")
    assert (caught.value.code, caught.value.status) == ("teapot", 418)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": "text/html"}, b"<html>"),
        Reply(200, {"Content-Type": "application/json"}, b"[]"),
        Reply(500, {"Content-Type": "text/html"}, b"<html>oops"),
        Reply(301, {"Location": "https://example.com/"}, b""),
    ],
)
def test_what_is_not_penstock_is_told_so(server: Misbehaving, client: Client, reply: Reply) -> None:
    server.replies.append(reply)
    with pytest.raises(UnexpectedAnswer, match="Penstock server"):
        client.jobs.get("job_01")


def test_wait_returns_the_finished_job(server: Misbehaving, client: Client) -> None:
    server.replies.extend([as_json(JOB), as_json(JOB | {"status": "running"}), as_json(FINISHED)])
    job = client.jobs.wait("job_01")
    assert (job.status, job.text, job.finished) == (JobState.SUCCEEDED, "Hé\u2028llo", True)


def test_wait_outlasts_an_outage_that_a_single_request_does_not(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.001)
    server.replies.extend([as_json(JOB), *[HANG_UP] * 6, as_json(FINISHED)])
    with Client(server.url, "psk_x", max_retries=0, patience=60) as client:
        assert client.jobs.wait("job_01").finished


def test_wait_does_not_outlast_a_refusal(server: Misbehaving, client: Client) -> None:
    server.replies.extend([as_json(JOB), problem("not_found", 404)])
    with pytest.raises(NotFound):
        client.jobs.wait("job_01")


def test_an_answer_of_another_shape_is_told_so(server: Misbehaving, client: Client) -> None:
    server.replies.append(as_json(JOB | {"status": "lost"}))
    with pytest.raises(UnexpectedAnswer, match="Job is not as expected: status"):
        client.jobs.get("job_01")


def test_wait_gives_up_in_time_and_says_where_the_job_stands(server: Misbehaving, client: Client) -> None:
    server.always = as_json(JOB)
    with pytest.raises(WaitTimedOut, match=r"job_01 is queued after 0\.2 seconds") as caught:
        client.jobs.wait("job_01", timeout=0.2)
    assert caught.value.extra["job"].id == "job_01"


def test_a_time_without_a_zone_is_refused(client: Client) -> None:
    with pytest.raises(ValidationFailed, match="time zone"):
        client.jobs.submit(model="tiny", prompt="x", deadline=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


def test_address_and_key_come_from_the_environment(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_URL", f"{server.url}/")
    monkeypatch.setenv("PENSTOCK_API_KEY", "psk_env")
    server.replies.append(as_json(JOB))
    with Client() as client:
        client.jobs.get("job_01")
    assert server.asked[0].path == "/v1/jobs/job_01"
    assert server.asked[0].headers["authorization"] == "Bearer psk_env"


def test_a_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_API_KEY", raising=False)
    with pytest.raises(SettingsError, match="PENSTOCK_API_KEY"):
        Client("http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "nonsense"])
def test_a_wrong_address_names_the_variable(url: str) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_URL"):
        Client(url, "psk_x")


@pytest.mark.parametrize("key", ["psk\nx", "psk x", "psk_é"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="PENSTOCK_API_KEY"):
        Client("http://127.0.0.1:1", key)


def test_the_key_is_not_shown(server: Misbehaving) -> None:
    with Client(server.url, "psk_secret") as client:
        assert "psk_secret" not in repr(client) + repr(vars(client)) + repr(vars(client._transport))
