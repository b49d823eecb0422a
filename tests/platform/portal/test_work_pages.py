"""The pages of work: the playground, many jobs at once, batches and files, as a browser without scripts sees them."""

import io
import json
import re
from collections.abc import Callable
from decimal import Decimal
from html import unescape
from typing import Any

import pytest
from penstock.auth.models import User
from penstock.batches.models import Batch
from penstock.batches.tending import BatchTender
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.db import Database
from penstock.jobs.journal import Journal
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock.usage.prices import NewPrice, set_price
from redis import Redis
from sqlalchemy import func, select, update

from tests.factories import make_deployment, make_worker
from tests.platform.api.conftest import Worker
from tests.platform.batches.serving import workshop_of
from tests.platform.portal.conftest import Person
from tests.platform.portal.test_job_pages import run_to_end

CHAT = {
    "model": "tiny", "mode": "chat", "message.role": ["system", "user"], "message.content": ["", "hello there"],
    "params.temperature": "0", "params.max_tokens": "10",
}  # fmt: skip
ASKED = {"endpoint": "/v1/jobs", "completion_window": "24h", "invalid_lines": "refuse", "priority": "0"}


def text_of(html: str) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split()).replace(" ,", ",")


def line(name: str, prompt: str = "hello there") -> dict[str, Any]:
    return {
        "custom_id": name, "method": "POST", "url": "/v1/jobs", "body": {"model": "tiny", "input": {"prompt": prompt}},
    }  # fmt: skip


def upload(person: Person, content: bytes, token: str | None = None) -> Any:
    form = {"purpose": "batch", "file": (io.BytesIO(content), "lines.jsonl")}
    headers = {"X-CSRFToken": token if token is not None else person.token()}
    return person.client.post("/files", data=form, headers=headers)


def a_file(person: Person, *documents: Any) -> str:
    answer = upload(person, b"".join(json.dumps(each).encode() + b"\n" for each in documents))
    assert answer.status_code == 201, answer.text
    file_id: str = answer.json["id"]
    return file_id


@pytest.fixture
def worker(database: Database, redis: Redis, deployment: Deployment) -> Worker:
    with database.transaction() as session:
        row = make_worker(session, session.merge(deployment, load=False))
    return Worker(database, Journal(redis, publisher=row.id), row.id, deployment.id)


@pytest.fixture
def tend(settings: Settings, database: Database, redis: Redis) -> Callable[[], None]:
    """Brings every batch as far as it gets for now."""
    tender = BatchTender(workshop_of(settings, database, redis))

    def work() -> None:
        with database.transaction() as session:
            session.execute(update(Batch).values(due_at=func.now()))
        while tender.work_once():
            pass

    return work


def test_the_playground_counts_runs_and_shows_the_answer(
    person: Person, deployment: Deployment, database: Database
) -> None:
    with database.transaction() as session:
        price = NewPrice("tiny", "EUR", Decimal(2), Decimal(1), Decimal(100_000))
        set_price(session, price, created_by="test")
    counted = text_of(person.post("/playground/count", CHAT).text)
    assert counted.startswith("2 tokens of 256, at most 1.000004 EUR")
    assert "client.jobs.submit(" in counted
    assert "Write a prompt first." in text_of(person.post("/playground/count", {"model": "tiny"}).text)
    assert "Write a number." in text_of(person.post("/playground/count", CHAT | {"params.temperature": "warm"}).text)

    ran = person.post("/playground", CHAT)
    path, _, anchor = ran.headers["Location"].partition("#")
    assert (ran.status_code, anchor) == (303, "answers")
    page = person.get(path).text
    job_id = re.search(r"data-stream=\"/jobs/(job_\w+)/events\"", page)
    assert job_id is not None
    assert person.job(job_id[1]).tags == ["playground"]
    run_to_end(database, deployment, "so ", "it is")
    assert "data-final" in person.get(f"/playground/answers/{job_id[1]}").text
    page = person.get(path).text
    assert "so it is" in page
    assert "data-stream" not in page
    assert "hello there" in page, "the form is as it was sent"
    on = person.get(f"/playground?from={job_id[1]}&go_on=1").text
    assert re.findall(r"<option value=\"(\w+)\" selected>", on)[:3] == ["user", "assistant", "user"]
    assert "so it is" in on


def test_two_versions_are_asked_the_same_with_one_seed(
    person: Person, deployment: Deployment, database: Database
) -> None:
    with database.transaction() as session:
        make_deployment(session, version="2", champion=False)
        session.execute(update(Deployment).values(first_ready_at=func.now()))
    assert "tiny · version 2" in person.get("/playground").text
    ran = person.post("/playground", CHAT | {"versus": "tiny:2"})
    with database.transaction() as session:
        first, second = session.scalars(select(Job).order_by(Job.id)).all()
    assert [first.model_version, second.model_version] == ["1", "2"]
    assert (first.seed, first.input, first.params) == (second.seed, second.input, second.params)
    page = person.get(ran.headers["Location"].partition("#")[0]).text
    assert page.count("data-stream=") == 2
    wrong = person.post("/playground", CHAT | {"versus": "tiny:9"})
    assert wrong.status_code == 404
    assert "No version" in wrong.text
    assert 'id="versus-error"' in wrong.text
    with database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2, "neither of the two is submitted alone"


def test_many_jobs_are_cancelled_by_what_the_list_shows(
    person: Person, deployment: Deployment, settings: Settings, database: Database, redis: Redis
) -> None:
    chosen = [person.submit(tags=["old"]) for _ in range(3)]
    kept = person.submit()
    listed = person.get("/jobs?tag=old&within=24h").text
    way = re.search(r'href="(/jobs/bulk/new\?action=cancel[^"]*)"', listed)
    assert way is not None
    asked = person.get(unescape(way[1])).text
    assert "3 jobs match now" in text_of(asked)
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked))
    assert form.keys() >= {"action", "tag", "created_after"}, "the time is fixed when it is shown"
    begun = person.post("/jobs/bulk", {name: value for name, value in form.items() if name != "csrf_token"})
    path = begun.headers["Location"]
    assert 'hx-trigger="every 1s"' in person.get(path).text
    tender = BulkTender(workshop_of(settings, database, redis), JOB_WORKS)
    while tender.work_once():
        pass
    done = person.get(f"{path}/progress").text
    assert "hx-trigger" not in done
    assert "Done 3" in text_of(done)
    assert {person.job(job.id).state for job in chosen} == {"cancelled"}
    assert person.job(kept.id).state == "queued"
    assert "3 of 3" in text_of(person.get("/jobs/bulk").text)
    assert person.post(f"{path}/cancel").status_code == 303, "it is shown as it ended"


def test_ticked_jobs_are_cancelled_by_a_plain_form(
    person: Person, deployment: Deployment, make_person: Callable[..., Person]
) -> None:
    jobs = [person.submit() for _ in range(3)]
    stranger = make_person("eve@example.com")
    theirs = stranger.submit()
    listed = person.get("/jobs").text
    boxes = re.findall(r'<input type="checkbox" name="id" value="(job_\w+)" form="chosen"', listed)
    assert set(boxes) == {job.id for job in jobs}
    assert '<form class="chosen-bar" id="chosen" method="post" action="/jobs/bulk/new"' in listed

    asked = person.post("/jobs/bulk/new", {"action": "cancel", "id": boxes[:2]}).text
    assert "2 jobs were ticked" in text_of(asked)
    assert re.findall(r'<input type="hidden" name="id" value="([^"]*)"', asked) == boxes[:2]
    begun = person.post("/jobs/bulk", {"action": "cancel", "id": boxes[:2]})
    progress = text_of(person.get(begun.headers["Location"]).text)
    assert "2 jobs that were chosen one by one" in progress
    assert "In all 2" in progress
    assert "2 jobs that were chosen" in text_of(person.get("/jobs/bulk").text)

    assert person.post("/jobs/bulk", {"action": "cancel", "id": [boxes[0], theirs.id]}).status_code == 422
    assert person.post("/jobs/bulk/new", {"action": "sing", "id": boxes[:1]}).status_code == 422
    assert person.post("/jobs/bulk/new", {"action": "cancel"}).status_code == 422


def test_a_bulk_operation_needs_a_filter_that_says_something(person: Person) -> None:
    for query in ("action=cancel", "action=cancel&status=failed", "action=sing&tag=x", "action=cancel&within=99y"):
        assert person.get(f"/jobs/bulk/new?{query}").status_code == 422, query


def test_feedback_is_kept_and_shown(person: Person, deployment: Deployment, database: Database) -> None:
    job = person.submit()
    early = person.post(f"/jobs/{job.id}/feedback", {"verdict": "good"})
    assert early.status_code == 409
    run_to_end(database, deployment, "done")
    assert person.post(f"/jobs/{job.id}/feedback", {"comment": "no judgement"}).status_code == 422
    assert person.post(f"/jobs/{job.id}/feedback", {"verdict": "bad", "comment": "<b>wrong sum"}).status_code == 303
    page = person.get(f"/jobs/{job.id}").text
    assert "&lt;b&gt;wrong sum" in page
    assert "<strong>Bad</strong>" in page
    assert person.email in page


def test_a_file_comes_by_a_header_token_alone_and_goes_again(person: Person) -> None:
    assert upload(person, b"{}", token="made-up").status_code == 400
    wrong = person.client.post("/files", data={"purpose": "batch"}, headers={"X-CSRFToken": person.token()})
    assert (wrong.status_code, (wrong.json or {})["code"]) == (415, "unsupported_media_type")
    file_id = a_file(person, line("a"))
    assert "lines.jsonl" in person.get("/files").text
    assert "lines.jsonl" not in person.get("/files?purpose=batch_output").text
    with person.get(f"/files/{file_id}/content") as content:
        assert json.loads(content.data)["custom_id"] == "a"
    person.post(f"/files/{file_id}/delete")
    gone = person.get("/files").text
    assert "lines.jsonl is gone." in gone
    assert "No file" in gone


def test_a_batch_is_made_followed_and_its_failed_line_retried(
    person: Person, deployment: Deployment, worker: Worker, tend: Callable[[], None]
) -> None:
    file_id = a_file(person, line("one"), line("two"), line("three"))
    assert f'value="{file_id}" selected' in person.get(f"/batches/new?file={file_id}").text
    made = person.post("/batches/new", ASKED | {"input_file_id": file_id})
    path = made.headers["Location"]
    assert "Its file is being read." in person.get(path).text
    tend()
    worker.claim()
    worker.write("first answer")
    worker.finish()
    worker.claim()
    worker.write("half")
    worker.finish(JobState.FAILED)
    tend()
    page = text_of(person.get(path).text)
    for words in ("Settled 2 of 3", "first answer", "Retry 1 line", "Results so far", "one", "two", "three"):
        assert words in page, words
    with person.get(f"{path}/results.jsonl") as results:
        assert [json.loads(each)["custom_id"] for each in results.data.splitlines()] == ["one", "two"]
    assert "two" in (failed := text_of(person.get(f"{path}?status=failed").text))
    assert "three" not in failed
    assert "three" in (rest := text_of(person.get(f"{path}?after=2").text))
    assert "first answer" not in rest
    assert [person.get(f"{path}?after={word}").status_code for word in ("soon", "9" * 30)] == [200, 200]
    assert person.get(f"{path}?status=lost").status_code == 422
    assert person.post(f"{path}/pause").status_code == 303
    assert "Paused" in text_of(person.get(f"{path}/changes").text)
    assert "In progress" in text_of(person.get("/batches").text) or "Paused" in text_of(person.get("/batches").text)
    person.post(f"{path}/priority", {"priority": "7"})
    assert "Priority 7" in text_of(person.get(path).text)
    assert person.post(f"{path}/priority", {"priority": "often"}).status_code == 422
    again = person.post(f"{path}/retry", {"custom_id": "two"})
    retried = text_of(person.get(again.headers["Location"]).text)
    assert "The lines are tried again" in retried
    assert "Settled 0 of 1" in retried
    person.post(f"{path}/cancel")
    tend()
    assert "Cancelled" in text_of(person.get(path).text)
    person.post(f"{path}/resume")
    assert "nothing can be changed of it" in text_of(person.get(path).text)


def test_what_is_wrong_with_a_file_is_told_by_line(
    person: Person, deployment: Deployment, tend: Callable[[], None]
) -> None:
    file_id = a_file(person, line("one"), line("one"), line("two") | {"body": {"model": "tiny", "input": {}}})
    path = person.post("/batches/new", ASKED | {"input_file_id": file_id}).headers["Location"]
    tend()
    page = person.get(path).text
    assert "2 errors in the file" in text_of(page)
    errors = re.findall(r'data-label="Line">(\d+)<', page.partition('id="errors-title"')[2].partition("</table>")[0])
    assert errors == ["2", "3"]
    assert "body.input" in page


def test_the_batch_form_tells_errors_at_its_fields(person: Person, deployment: Deployment) -> None:
    wrong = person.post("/batches/new", ASKED | {"input_file_id": "file_none", "priority": "high"})
    assert wrong.status_code == 422
    assert 'id="priority-error"' in wrong.text
    missing = person.post("/batches/new", ASKED | {"input_file_id": "file_none"})
    assert missing.status_code == 404
    assert 'id="input_file_id-error"' in missing.text


def test_only_administrators_come_to_the_keys(person: Person, database: Database) -> None:
    assert person.get("/keys").status_code == 403
    with database.transaction() as session:
        session.execute(update(User).values(role="admin"))
    assert person.get("/keys").status_code == 200
