"""The list, the form and the page of one job, as a browser without scripts sees them."""

import json
import re
from collections.abc import Callable
from html import unescape

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment
from sqlalchemy import select, update

from tests.factories import make_deployment, make_worker
from tests.platform.portal.conftest import Person

CHAT = {
    "model": "tiny", "mode": "chat", "message.role": ["system", "user"], "message.content": ["", "one\r\ntwo"],
    "params.temperature": "0", "class": "interactive",
}  # fmt: skip


def run_to_end(database: Database, deployment: Deployment, *texts: str, state: JobState = JobState.SUCCEEDED) -> str:
    """Serve the next job of the deployment with this output."""
    with database.transaction() as session:
        claim = lease.claim(session, worker_id="wrk_abcdefgh", deployment_id=deployment.id, lease_seconds=30)
        assert claim is not None
        entries = [JournalEntry(0, place, 100 + place, text, None, claim.fence) for place, text in enumerate(texts)]
        entries.append(JournalEntry(0, len(texts), None, "", None, claim.fence, "stop"))
        held = Held(claim.job.id, claim.fence)
        lease.finish(session, held, Finish(state, entries, prompt_tokens=7, cached_tokens=3, first_token_seconds=0.0))
    return claim.job.id


def only_job(database: Database) -> Job:
    with database.transaction() as session:
        return session.scalars(select(Job)).one()


def test_the_form_submits_what_it_says(person: Person, deployment: Deployment, database: Database) -> None:
    form = CHAT | {
        "params.max_tokens": "20", "params.top_p": "0.9", "params.seed": "5", "params.stop": "END\r\n\r\nStop here",
        "class": "batch", "priority": "-3", "tags": "a, b,", "webhook.url": "https://example.com/hook",
    }  # fmt: skip
    answer = person.post("/jobs/new", form)
    job = only_job(database)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{job.id}")
    assert job.input == {"messages": [{"role": "user", "content": "one\ntwo"}]}
    assert (job.tenant_id, job.seed, job.job_class, job.priority, job.tags) == (person.tenant_id, 5, 1, -3, ["a", "b"])
    wanted = {"max_tokens": 20, "top_p": 0.9, "temperature": 0.0, "stop": ["END", "Stop here"]}
    assert {name: job.params[name] for name in wanted} == wanted
    assert job.webhook == {"url": "https://example.com/hook", "events": []}


def test_a_prompt_is_sent_as_it_is(person: Person, deployment: Deployment, database: Database) -> None:
    person.post("/jobs/new", CHAT | {"mode": "prompt", "input.prompt": " two\r\nlines "})
    assert only_job(database).input == {"prompt": " two\nlines "}


@pytest.mark.parametrize(
    ("changes", "status", "field", "message"),
    [
        ({"params.temperature": "700"}, 422, "params-temperature", "Is too large; it must be 100.0 or less."),
        ({"params": "{"}, 422, "params", "Has the wrong type (a string); should be an object."),
        ({"params": "[]"}, 422, "params", "Has the wrong type (an array); should be an object."),
        ({"params": '{"heat": 1}'}, 422, "params", "Is not a known field"),
        ({"params": '{"response_format": {"type": "regex", "regex": "("}}'}, 422, "params", "unclosed group"),
        ({"budget.tokens": "1"}, 422, "budget-tokens", "Does not suffice"),
        ({"params.max_tokens": "lots"}, 422, "params-max_tokens", "Write a whole number."),
        ({"params.top_p": "x"}, 422, "params-top_p", "Write a number."),
        ({"priority": "101"}, 422, "priority", "Is too large; it must be 100 or less."),
        ({"webhook.url": "nowhere"}, 422, "webhook-url", "Is not an address"),
        ({"tags": "x" * 65}, 422, "tags", "Is too long; it may have at most 64 characters."),
        ({"params.stop": "x" * 300}, 422, "params-stop", "Is too long"),
        ({"message.content": ["", " "]}, 422, "messages", "Write at least one message."),
        ({"mode": "prompt"}, 422, "input-prompt", "Write a prompt."),
        ({"model": "missing"}, 404, "model", "No model"),
        ({"params.max_tokens": "300"}, 400, "messages", "300"),
    ],
)
def test_errors_are_shown_at_their_fields(
    person: Person,
    deployment: Deployment,
    database: Database,
    changes: dict[str, str],
    status: int,
    field: str,
    message: str,
) -> None:
    answer = person.post("/jobs/new", CHAT | changes)
    assert answer.status_code == status
    shown = re.search(rf'id="{re.escape(field)}-error">.*?<span>(.*?)</span>', answer.text, re.DOTALL)
    assert shown is not None, answer.text
    assert message in shown[1]
    assert "Not submitted" in answer.text
    if "message.content" not in changes:
        assert "one\ntwo" in answer.text, "what was written is kept"
    with database.transaction() as session:
        assert session.scalars(select(Job)).all() == []


def test_a_reached_limit_is_told_above_the_form(person: Person, deployment: Deployment, database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(Tenant).where(Tenant.id == person.tenant_id).values(max_queued_jobs=1))
    person.submit()
    answer = person.post("/jobs/new", CHAT)
    assert answer.status_code == 429
    assert "The limit of 1 waiting jobs is reached" in answer.text


def test_the_form_offers_models_with_their_readiness(person: Person, database: Database) -> None:
    assert "No model takes jobs yet" in person.get("/jobs/new").text
    with database.transaction() as session:
        make_worker(session, make_deployment(session, "ready-one", "4"))
        make_worker(session, make_deployment(session, "loading-one"), state="loading")
        make_deployment(session, "absent-one")
    page = person.get("/jobs/new").text
    for model, said in (
        ("ready-one", "1 worker ready. Its context holds 256 tokens."),
        ("loading-one", "Loading, 0%."),
        ("absent-one", "No worker hosts it now: jobs wait until one does."),
        ("other", "Not among the models that take jobs now."),
    ):
        assert (f"{model} · version" in page) is (model != "other")
        assert said in person.get(f"/jobs/readiness?model={model}").text


def test_the_list_filters_by_its_address(person: Person, deployment: Deployment, database: Database) -> None:
    done = person.submit(tags=["nightly"])
    run_to_end(database, deployment, "hello")
    waiting = person.submit()
    everything = person.get("/jobs").text
    assert done.id in everything
    assert waiting.id in everything
    for query in ("status=succeeded", "tag=nightly", "status=succeeded,failed&model=tiny"):
        narrowed = person.get(f"/jobs?{query}").text
        assert done.id in narrowed, query
        assert waiting.id not in narrowed, query
    assert "No job matches" in person.get("/jobs?model=other").text
    wrong = person.get("/jobs?status=sleeping")
    assert wrong.status_code == 422
    assert "There is no status &#39;sleeping&#39;" in wrong.text or "there is no status" in wrong.text


def test_an_empty_list_says_what_to_do(person: Person, database: Database) -> None:
    assert "No model takes jobs yet" in person.get("/jobs").text
    with database.transaction() as session:
        make_deployment(session)
    assert "No jobs yet" in person.get("/jobs").text


def test_older_jobs_are_a_page_away_and_keep_the_filter(person: Person, deployment: Deployment) -> None:
    jobs = [person.submit(tags=["x"]) for _ in range(27)]
    page = person.get("/jobs?tag=x").text
    assert jobs[26].id in page
    assert jobs[1].id not in page
    older = re.search(r'rel="next" href="([^"]+)"', page)
    assert older is not None
    assert "tag=x" in older[1]
    last = person.get(older[1].replace("&amp;", "&")).text
    assert jobs[1].id in last
    assert jobs[26].id not in last
    assert 'rel="next"' not in last
    assert "before=" not in re.findall(r'href="([^"]*status=failed[^"]*)"', last)[0]


def test_rows_come_again_only_when_they_changed(person: Person, deployment: Deployment, database: Database) -> None:
    person.submit()
    address = re.search(r'hx-get="([^"]*/jobs/rows[^"]*)"', person.get("/jobs?model=tiny").text)
    assert address is not None
    path = address[1].replace("&amp;", "&")
    assert "model=tiny" in path
    assert person.get(path).status_code == 204
    run_to_end(database, deployment, "hello")
    changed = person.get(path)
    assert changed.status_code == 200
    assert "Succeeded" in changed.text
    again = re.search(r'hx-get="([^"]+)"', changed.text)
    assert again is not None
    assert person.get(again[1].replace("&amp;", "&")).status_code == 204


def test_a_waiting_job_says_why_it_waits(person: Person, deployment: Deployment) -> None:
    job = person.submit()
    page = person.get(f"/jobs/{job.id}").text
    assert "Waiting in the queue" in page
    assert "No worker hosts version 1 of tiny: no worker is live." in page
    assert f'data-stream="/jobs/{job.id}/events"' in page
    assert "Cancel" in page
    assert "Retry" not in page


def test_a_finished_job_shows_all_of_itself(person: Person, deployment: Deployment, database: Database) -> None:
    submitted = person.submit(params={"temperature": 0.0, "max_tokens": 9}, tags=["x"], metadata={"order": "17"})
    job_id = run_to_end(database, deployment, '{"total":', " 12}")
    assert submitted.id == job_id
    page = person.get(f"/jobs/{job_id}").text
    for text in (
        "{&#34;total&#34;: 12}", "Read as JSON", "hello there", "The model ended its answer", "Succeeded", "Retry",
        "was the champion of tiny", "7 tokens", "3 tokens", "To first token", "Generating", "…abcdefgh", "order", "17",
        "Temperature", "Edit and rerun",
    ):  # fmt: skip
        assert text in page, text
    assert "data-stream" not in page
    assert "hx-trigger" not in page
    raw = person.get(f"/jobs/{job_id}/raw")
    assert raw.mimetype == "application/json"
    assert raw.json is not None
    assert raw.json["output"]["choices"][0]["text"] == '{"total": 12}'


def test_a_job_that_was_lost_and_found_shows_both_runs(
    person: Person, deployment: Deployment, database: Database
) -> None:
    job = person.submit()
    with database.transaction() as session:
        claim = lease.claim(session, worker_id="wrk_first", deployment_id=deployment.id, lease_seconds=30)
        assert claim is not None
    with database.transaction() as session:
        held = Held(job.id, claim.fence)
        lease.hand_back(session, held, RunOutcome.LEASE_LOST, "it fell silent", max_own_crashes=3)
    run_to_end(database, deployment, "hello")
    page = person.get(f"/jobs/{job.id}").text
    for text in ("Worker went silent", "it fell silent", "Lost, run 1", "Queued again", "Run 2 started"):
        assert text in page, text


def test_changes_bring_only_what_is_new(person: Person, deployment: Deployment, database: Database) -> None:
    job = person.submit()
    address = re.search(r'hx-get="([^"]*/changes[^"]*)"', person.get(f"/jobs/{job.id}").text)
    assert address is not None
    same = person.get(address[1]).text
    assert 'id="job-timeline"' in same
    assert 'id="job-head"' not in same
    run_to_end(database, deployment, "hello")
    new = person.get(address[1]).text
    assert 'id="job-head" hx-swap-oob="true"' in new
    assert "data-final" in new
    assert "hx-trigger" not in new


def test_cancel_and_retry(person: Person, deployment: Deployment, database: Database) -> None:
    job = person.submit(params={"seed": 4})
    answer = person.post(f"/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{job.id}")
    assert person.job(job.id).state == "cancelled"
    assert person.post(f"/jobs/{job.id}/cancel").status_code == 303, "the job is shown as it ended"
    again = person.post(f"/jobs/{job.id}/retry")
    new_id = again.headers["Location"].rsplit("/", 1)[1]
    assert person.job(new_id).retry_of == job.id
    assert new_id in person.get(f"/jobs/{job.id}").text


def test_edit_and_rerun_fills_the_form(person: Person, deployment: Deployment, database: Database) -> None:
    job = person.submit(
        input={"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]},
        params={"temperature": 0.5, "top_k": 3, "seed": 99, "stop": ["x", "y"]}, tags=["a", "b"], **{"class": "batch"},
    )  # fmt: skip
    page = person.get(f"/jobs/new?from={job.id}").text
    for text in (
        "be brief",
        'value="0.5"',
        'value="3"',
        'value="99"',
        'value="a, b"',
        "x\ny",
        'value="batch" selected',
    ):
        assert text in page, text


def test_parameters_without_a_field_of_their_own_are_written_as_json(
    person: Person, deployment: Deployment, database: Database
) -> None:
    further = {"response_format": {"type": "regex", "regex": "[0-9]+"}, "min_p": 0.1}
    fields = {"params": json.dumps(further), "params.n": "2", "budget.tokens": "200"}
    answer = person.post("/jobs/new", CHAT | fields)
    job = person.job(answer.headers["Location"].rsplit("/", 1)[1])
    assert job.params.items() >= further.items()
    assert (job.params["n"], job.token_budget) == (2, 200)
    again = unescape(person.get(f"/jobs/new?from={job.id}").text)
    assert json.dumps(further, indent=2) in again
    assert 'value="200"' in again
    page = unescape(person.get(f"/jobs/{job.id}").text)
    assert "Repetition penalty" not in page  # it is at its default
    assert "regex" in page


def test_a_json_schema_has_a_field_of_its_own(person: Person, deployment: Deployment) -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    answer = person.post("/jobs/new", CHAT | {"params.response_format": json.dumps(schema)})
    job = person.job(answer.headers["Location"].rsplit("/", 1)[1])
    assert job.params["response_format"] == {"type": "json_schema", "schema": schema}
    assert list(job.params["response_format"]["schema"]["properties"]) == ["b", "a"]
    again = unescape(person.get(f"/jobs/new?from={job.id}").text)
    assert json.dumps(schema, indent=2) in again
    assert "json_schema" not in again, "it is in one field alone"
    wrong = person.post("/jobs/new", CHAT | {"params.response_format": '{"type": 7}'})
    assert wrong.status_code in (400, 422)
    assert 'id="params-response_format-error"' in wrong.text


def test_the_stream_of_a_finished_job_replays_and_ends(
    person: Person, deployment: Deployment, database: Database
) -> None:
    job_id = person.submit().id
    run_to_end(database, deployment, "hel", "lo")
    stream = person.get(f"/jobs/{job_id}/events", Accept="text/event-stream")
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in stream.text.strip().split("\n\n")]
    texts = [json.loads(block["data"])["text"] for block in blocks if block.get("event") == "output.delta"]
    assert "".join(texts) == "hello"
    ids = [block["id"] for block in blocks if "id" in block]
    rest = person.get(f"/jobs/{job_id}/events?after={ids[-3]}").text
    assert [line for line in rest.splitlines() if line.startswith("id: ")] == [f"id: {ids[-2]}", f"id: {ids[-1]}"]
    assert person.get(f"/jobs/{job_id}/events", Last_Event_ID=ids[-1]).status_code == 204


@pytest.mark.parametrize("path", ["/jobs/job_none", "/no/such/page"])
def test_what_is_not_there_is_told_on_a_page(person: Person, path: str) -> None:
    answer = person.get(path)
    assert answer.status_code == 404
    assert "Not found" in answer.text
    assert "To the jobs" in answer.text


def test_an_unreachable_database_is_told_on_a_page(
    person: Person, make_person: Callable[..., Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(Database, "transaction", fail)
    answer = person.get("/jobs")
    assert answer.status_code == 503
    assert "does not answer" in answer.text
