"""OpenAI's paths where things go wrong: what a call then says, and what becomes of its job."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from penstock.auth.models import ApiKey, Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.lease import Finish
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.jobs.stream import Cursor, StreamItem
from penstock.openai_api import stream as openai_stream
from penstock.openai_api.completion_request import CompletionRequest
from penstock.openai_api.forms import CompletionForm
from penstock.openai_api.stream import Telling
from penstock.registry.vocabulary import Vocabulary
from sqlalchemy import select, update

from tests.factories import WordCounter, make_tenant, submit_job
from tests.platform.api.conftest import Caller, Worker
from tests.platform.registry.model_folders import make_folder, metaspace

pytestmark = pytest.mark.usefixtures("deployment")
PATH = "/v1/completions"
CALL = {"model": "tiny", "prompt": "hello there"}
STREAMED = CALL | {"stream": True}


def blocks(response: Any) -> Iterator[str]:
    """The stream's events and comments, one by one."""
    for chunk in response.response:
        yield from chunk.decode().strip().split("\n\n")


def events(response: Any) -> Iterator[Any]:
    """Their data, without comments."""
    for block in blocks(response):
        if not block.startswith(":"):
            data = block.removeprefix("data: ")
            yield json.loads(data) if data != "[DONE]" else data


def fail(worker: Worker, *texts: str) -> None:
    """Write these tokens and then fail the job that is held."""
    assert worker.held is not None
    worker.write(*texts)
    with worker.database.transaction() as session:
        error = {"code": "engine_crashed", "message": "it fell over"}
        lease.finish(session, worker.held, Finish(JobState.FAILED, worker.entries, prompt_tokens=2, error=error))
    worker.journal.announce([worker.held.job_id])


def only_job(caller: Caller) -> dict[str, Any]:
    (job,) = caller.get("/v1/jobs").json["data"]
    assert isinstance(job, dict)
    return job


def until_there_is_a_job(caller: Caller) -> None:
    pause = threading.Event()
    while not caller.get("/v1/jobs").json["data"]:
        pause.wait(0.01)


def test_a_call_is_its_keys_like_any_other_job(database: Database, caller: Caller) -> None:
    answer = caller.post("/v1/responses", {"model": "tiny", "input": "hello", "background": True})
    assert answer.status_code == 200, answer.text
    with database.transaction() as session:
        assert session.scalars(select(Job.api_key_id)).all() == session.scalars(select(ApiKey.id)).all()


def test_a_job_that_fails_is_an_error_that_clients_do_not_repeat(caller: Caller, worker: Worker) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(caller.post, PATH, CALL)
        until_there_is_a_job(caller)
        worker.claim()
        fail(worker, "Hi")
        answer = call.result()

    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (500, "false")
    error = answer.json["error"]
    assert (error["code"], error["type"]) == ("job_failed", "server_error")
    assert error["message"] == f"{only_job(caller)['id']} failed: it fell over (engine_crashed)"


def test_a_stream_tells_what_came_before_the_failure(caller: Caller, worker: Worker) -> None:
    with closing(caller.post(PATH, STREAMED)) as response:
        assert response.headers["X-Request-Id"] == only_job(caller)["id"]
        worker.claim()
        fail(worker, "Hi", " you")
        told = list(events(response))

    assert [event["choices"][0]["text"] for event in told[:-1]] == ["Hi", " you"]
    assert told[-1]["error"]["code"] == "job_failed"


def test_a_server_that_stops_says_so_and_cancels(app: Flask, caller: Caller, worker: Worker) -> None:
    with ThreadPoolExecutor() as pool, closing(caller.post(PATH, STREAMED)) as response:
        told = events(response)
        worker.claim()
        worker.write("Hi")
        assert next(told)["choices"][0]["text"] == "Hi"
        waiting = pool.submit(caller.post, PATH, CALL)
        while len(caller.get("/v1/jobs").json["data"]) < 2:
            threading.Event().wait(0.01)
        app.extensions["penstock"].stop_streams()
        (last,) = told
        answer = waiting.result()

    assert last["error"]["code"] == "service_unavailable"
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "service_unavailable")
    jobs = caller.get("/v1/jobs").json["data"]
    assert [job["status"] for job in jobs] == ["cancelled", "running"]
    assert jobs[1]["cancel_requested_at"] is not None


def test_without_a_place_to_wait_in_nothing_is_submitted(app: Flask, caller: Caller) -> None:
    places = app.extensions["penstock"].waiting_places
    taken = [places.take() for _ in range(places.count)]
    for body in (CALL, STREAMED):
        answer = caller.post(PATH, body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    for leave in taken:
        leave()

    assert caller.get("/v1/jobs").json["data"] == []
    caller.post(PATH, STREAMED).close()
    assert only_job(caller)["status"] == "cancelled"
    assert places.taken == 0


def test_a_refused_call_leaves_nothing_behind(app: Flask, caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        session.get_one(Tenant, caller.tenant_id).max_open_streams = 1
    with closing(caller.post(PATH, STREAMED)):
        refused = caller.post(PATH, STREAMED)
        assert (refused.status_code, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["Retry-After"]) > 0
    wrong = caller.post(PATH, STREAMED | {"prompt": ["fine", "fine"], "model": "nobody"})
    assert wrong.json["error"]["code"] == "model_not_found"
    caller.post(PATH, STREAMED).close()  # the stream's place was given back

    assert len(caller.get("/v1/jobs").json["data"]) == 2
    assert app.extensions["penstock"].waiting_places.taken == 0


def test_a_key_for_other_models_may_not_call_this_one(caller: Caller, database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.tenant_id == caller.tenant_id).values(models=["other"]))

    answer = caller.post(PATH, CALL)
    assert (answer.status_code, answer.json["error"]["param"]) == (403, "model")
    assert answer.json["error"]["code"] == "model_not_allowed"
    assert caller.get("/v1/models/tiny").status_code == 404


def test_log_probabilities_that_the_tokenizer_cannot_name_are_refused(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "model", tokenizer=metaspace())
    monkeypatch.setattr(WordCounter, "vocabulary", lambda *_: Vocabulary.from_folder(folder, 180))

    answer = caller.post(PATH, CALL | {"logprobs": 1})
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "logprobs")
    assert caller.get("/v1/jobs").json["data"] == []


def test_several_prompts_are_submitted_together_or_not_at_all(caller: Caller) -> None:
    answer = caller.post(PATH, STREAMED | {"prompt": ["fine", "far too many words " * 200]})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "prompt")
    assert caller.get("/v1/jobs").json["data"] == []


def test_a_key_covers_every_prompt_of_its_call(caller: Caller, worker: Worker) -> None:
    two = STREAMED | {"prompt": ["one", "two"]}
    first = caller.post(PATH, two, Idempotency_Key="k")
    first.close()
    again = caller.post(PATH, two, Idempotency_Key="k")

    assert [job["status"] for job in caller.get("/v1/jobs").json["data"]] == ["queued", "queued"]
    assert again.headers["X-Request-Id"] == first.headers["X-Request-Id"]
    for text in ("1", "2"):
        worker.claim()
        worker.write(text)
        worker.finish()
    told = list(events(again))
    again.close()
    texts = {
        event["choices"][0]["index"]: event["choices"][0]["text"] for event in told[:-1] if event["choices"][0]["text"]
    }
    assert texts == {0: "1", 1: "2"}
    assert told[-1] == "[DONE]"


def test_a_silent_stream_sends_comments(caller: Caller, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_stream, "HEARTBEAT_SECONDS", 0.0)
    with closing(caller.post(PATH, STREAMED)) as response:
        told = blocks(response)
        assert [next(told), next(told)] == [": still here"] * 2
        worker.claim()
        worker.write("Hi")
        assert any('"Hi"' in next(told) for _ in range(5))


def test_tokens_that_were_lost_after_they_were_told_end_the_stream(database: Database, caller: Caller) -> None:
    with database.transaction() as session:
        job = submit_job(session, make_tenant(session))
    delta = {"position": 0, "choice": 0, "index": 0, "token_id": 5, "text": "Hi"}
    items = [
        StreamItem(Cursor(2, 1), "output.delta", delta),
        StreamItem(Cursor(3, 0), "output.rewound", {"data": {"position": 0}, "created_at": str(utc_now())}),
        StreamItem(Cursor(3, 1), "output.delta", delta),
    ]
    form = CompletionForm(CompletionRequest.model_validate(CALL), [job], [])
    lines = list(Telling(form, 1, False).lines([(0, items), (0, items)]))

    _, text = lines
    first, last = [json.loads(line.removeprefix("data: ")) for line in text.strip().split("\n\n")]
    assert first["choices"][0]["text"] == "Hi"
    assert last["error"]["code"] == "job_stopped"
