"""A tenant's limits over HTTP: what gets through, what is refused, and what the answers say of it."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.quotas.views import QuotasDocument

from tests.platform.api.conftest import BODY, Caller, Worker

pytestmark = pytest.mark.usefixtures("deployment")
FIELD = re.compile(r'"(\w+)"((?:;[a-z]+=(?:\d+|"[a-z-]+"))+)')
FIFTY = BODY | {"params": {"max_tokens": 48}}
"""A job that may use 50 tokens: two of the prompt and 48 of output."""


@pytest.fixture
def limited(make_caller: Callable[..., Caller], database: Database) -> Callable[..., Caller]:
    """Makes a caller whose tenant has these limits."""

    def make(**limits: int) -> Caller:
        caller = make_caller()
        with database.transaction() as session:
            tenant = session.get_one(Tenant, caller.tenant_id)
            for name, value in limits.items():
                setattr(tenant, name, value)
        return caller

    return make


def fields(answer: Any, name: str) -> dict[str, dict[str, str]]:
    """A RateLimit field as its policies with their parameters."""
    text = answer.headers[name]
    assert re.fullmatch(rf"{FIELD.pattern}(?:, {FIELD.pattern})*", text), text
    return {
        policy: dict(part.split("=") for part in parameters.strip(";").split(";"))
        for policy, parameters in FIELD.findall(text)
    }


def test_without_limits_nothing_is_said_of_them(caller: Caller) -> None:
    answer = caller.post("/v1/jobs", BODY)
    assert not {"RateLimit", "RateLimit-Policy", "Retry-After"} & set(answer.headers.keys())


def test_requests_of_a_minute(limited: Callable[..., Caller], caller: Caller) -> None:
    program = limited(requests_per_minute=3)
    answers = [program.get("/v1/jobs") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert fields(answers[0], "RateLimit-Policy") == {"requests": {"q": "3", "qu": '"requests"', "w": "60"}}
    assert [fields(answer, "RateLimit")["requests"]["r"] for answer in answers] == ["2", "1", "0", "0"]
    refused = answers[3]
    assert (refused.json["code"], refused.json["limit"]) == ("quota_exceeded", 3)
    assert refused.json["policy"] == "requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert fields(refused, "RateLimit")["requests"]["t"] == refused.headers["Retry-After"]
    assert refused.headers["RateLimit-Policy"] == answers[0].headers["RateLimit-Policy"]
    assert caller.get("/v1/jobs").status_code == 200


def test_requests_that_are_refused_for_their_scope_count_too(limited: Callable[..., Caller]) -> None:
    program = limited(requests_per_minute=2)
    assert [program.get("/v1/jobs/job_absent").status_code for _ in range(3)] == [404, 404, 429]


def test_tokens_of_a_minute(limited: Callable[..., Caller]) -> None:
    program = limited(tokens_per_minute=100)
    answers = [program.post("/v1/jobs", FIFTY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert fields(answers[0], "RateLimit-Policy") == {"tokens": {"q": "100", "qu": '"tokens"', "w": "60"}}
    assert fields(answers[0], "RateLimit")["tokens"]["r"] == "50"
    assert answers[2].json["policy"] == "tokens"
    assert 25 <= int(answers[2].headers["Retry-After"]) <= 30
    assert len(program.get("/v1/jobs").json["data"]) == 2


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"params": {"max_tokens": 8}}, 10),
        ({"params": {"max_tokens": 8, "n": 3}}, 26),
        ({"params": {"max_tokens": 8, "n": 2, "best_of": 4}}, 34),
        ({"params": {}}, 256),
        ({"params": {}, "budget": {"tokens": 40}}, 40),
        ({"params": {"max_tokens": 8}, "budget": {"tokens": 40}}, 10),
    ],
)
def test_a_job_counts_with_what_it_may_use(limited: Callable[..., Caller], change: dict[str, Any], tokens: int) -> None:
    answer = limited(tokens_per_minute=100_000).post("/v1/jobs", BODY | change)
    assert answer.status_code == 202, answer.text
    assert fields(answer, "RateLimit")["tokens"]["r"] == str(100_000 - tokens)


def test_a_job_that_no_minute_could_hold_is_told_so(limited: Callable[..., Caller]) -> None:
    program = limited(tokens_per_minute=100)
    answer = program.post("/v1/jobs", BODY)
    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")
    assert (answer.json["field"], answer.json["limit"], answer.json["tokens"]) == ("params.max_tokens", 100, 256)
    assert program.post("/v1/jobs", FIFTY).status_code == 202


def test_a_replay_and_a_refused_job_use_no_tokens(limited: Callable[..., Caller]) -> None:
    program = limited(tokens_per_minute=100)
    for _ in range(3):
        assert program.post("/v1/jobs", FIFTY, Idempotency_Key="k").status_code == 202
        assert program.post("/v1/jobs", FIFTY | {"model": "absent"}).status_code == 404
    assert program.post("/v1/jobs", FIFTY).status_code == 202
    assert program.post("/v1/jobs", FIFTY).status_code == 429


def test_of_many_submits_at_once_no_more_wait_than_may(limited: Callable[..., Caller]) -> None:
    program = limited(max_queued_jobs=5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: program.post("/v1/jobs", BODY), range(32)))
    assert sorted(answer.status_code for answer in answers) == [202] * 5 + [429] * 27
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json["limit"], refused.headers["Retry-After"]) == (5, "5")


def test_open_streams(limited: Callable[..., Caller], worker: Worker) -> None:
    program = limited(max_open_streams=1)
    job_id = program.submit()
    path = f"/v1/jobs/{job_id}/events"
    first = program.get(path)
    assert first.status_code == 200
    assert fields(first, "RateLimit-Policy") == {"streams": {"q": "1", "qu": '"concurrent-requests"'}}
    assert fields(first, "RateLimit") == {"streams": {"r": "0"}}
    refused = program.get(path)
    assert (refused.status_code, refused.json["policy"]) == (429, "streams")
    assert refused.headers["Retry-After"] == "5"
    first.close()
    again = program.get(path)
    assert again.status_code == 200
    again.close()


def test_refused_streams_take_no_place_of_the_server(limited: Callable[..., Caller]) -> None:
    program = limited(max_open_streams=1)
    path = f"/v1/jobs/{program.submit()}/events"
    places = program.client.application.extensions["penstock"].waiting_places
    first = program.get(path)
    for _ in range(3):
        assert program.get(path).status_code == 429
    assert places.taken == 1
    first.close()
    assert places.taken == 0


def test_the_limits_in_force_can_be_read(limited: Callable[..., Caller], caller: Caller) -> None:
    program = limited(requests_per_minute=10, tokens_per_minute=100, max_open_streams=3, max_queued_jobs=7)
    program.post("/v1/jobs", FIFTY)
    answer = program.get("/v1/quotas").json
    found = QuotasDocument.model_validate(answer)
    assert (found.requests_per_minute.limit, found.requests_per_minute.remaining) == (10, 8)
    assert (found.tokens_per_minute.limit, found.tokens_per_minute.remaining) == (100, 50)
    assert 25 <= (found.tokens_per_minute.reset_seconds or 0) <= 30
    assert (found.queued_jobs.limit, found.queued_jobs.waiting) == (7, 1)
    assert found.open_streams.limit == 3
    none = QuotasDocument.model_validate(caller.get("/v1/quotas").json)
    assert (none.requests_per_minute.limit, none.open_streams.limit) == (None, None)


def test_an_operators_change_takes_hold(caller: Caller, limited: Callable[..., Caller]) -> None:
    path = f"/v1/admin/tenants/{caller.tenant_id}"
    changed = caller.call("PATCH", path, {"tokens_per_minute": 60, "max_open_streams": 2})
    assert (changed.json["tokens_per_minute"], changed.json["max_open_streams"]) == (60, 2)
    caller.client.application.extensions["penstock"].keys._known.clear()  # else two seconds later
    assert caller.get("/v1/quotas").json["tokens_per_minute"]["limit"] == 60
    assert [caller.post("/v1/jobs", FIFTY).status_code for _ in range(2)] == [202, 429]
