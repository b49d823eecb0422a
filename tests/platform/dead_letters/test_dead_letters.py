"""Dead letters: which failures make one, what it tells, and what an operator does with it."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.bulk.documents import BulkDetail
from penstock.db import Database
from penstock.dead_letters import documents
from penstock.dead_letters.burial import DEADLY
from penstock.dead_letters.documents import DeadLetterDetail, DeadLetterGroups, DeadLetterPage
from penstock.jobs import lease
from penstock.jobs.lease import Finish
from penstock.jobs.states import JobState, RunOutcome
from sqlalchemy import update

from tests.platform.api.conftest import Caller
from tests.platform.bulk.conftest import Bench

PATH = "/v1/admin/dead-letters"


def fail(bench: Bench, code: str, **body: Any) -> str:
    """A job that fails in its only run."""
    job_id = bench.caller.submit(**body)
    held = bench.worker.claim()
    error = {"code": code, "message": f"it broke by {code}"}
    with bench.workshop.database.transaction() as session:
        lease.finish(session, held, Finish(JobState.FAILED, [], prompt_tokens=2, error=error))
    return job_id


def crash(bench: Bench, outcome: RunOutcome, reason: str) -> None:
    """Give the job that is held back, as after a crash of its engine."""
    assert bench.worker.held is not None
    with bench.workshop.database.transaction() as session:
        lease.hand_back(session, bench.worker.held, outcome, reason, max_own_crashes=2)


def letters(bench: Bench, query: str = "") -> list[dict[str, Any]]:
    answer = bench.caller.get(f"{PATH}{query}")
    assert answer.status_code == 200, answer.text
    DeadLetterPage.model_validate(answer.json)
    found: list[dict[str, Any]] = answer.json["data"]
    return found


def settle(bench: Bench, letter: dict[str, Any], action: str) -> Any:
    return bench.caller.post(f"{PATH}/{letter['id']}/{action}")


def test_a_job_that_crashes_its_engine_tells_its_whole_story(bench: Bench) -> None:
    job_id = bench.caller.submit(params={"stop": ["secret"], "max_tokens": 9}, input={"prompt": "private words"})
    for outcome, reason in (
        (RunOutcome.CRASHED, "it died among others"),
        (RunOutcome.CRASHED_ALONE, "signal 11"),
        (RunOutcome.CRASHED_ALONE, "signal 6"),
    ):
        bench.worker.claim()
        crash(bench, outcome, reason)

    (letter,) = letters(bench)
    answer = bench.caller.get(f"{PATH}/{letter['id']}")
    told = DeadLetterDetail.model_validate(answer.json)
    assert (told.job_id, told.reason, told.status) == (job_id, "engine_crashed", "open")
    assert "2 times" in told.message
    assert [(run.worker, run.outcome, run.reason) for run in told.runs] == [
        (bench.worker.id, "crashed", "it died among others"),
        (bench.worker.id, "crashed_alone", "signal 11"),
        (bench.worker.id, "crashed_alone", "signal 6"),
    ]
    assert all(run.ended_at is not None for run in told.runs)
    assert (told.job.own_crashes, told.job.params["max_tokens"]) == (2, 9)
    assert "private" not in answer.text
    assert "secret" not in answer.text
    assert [job["id"] for job in bench.listed("&error=engine_crashed")] == [job_id]


@pytest.mark.parametrize("code", [*DEADLY, "prompt_too_long", "broken"])
def test_what_running_it_breaks_is_a_dead_letter_and_nothing_else(bench: Bench, code: str) -> None:
    job_id = fail(bench, code)
    assert [(letter["job_id"], letter["reason"]) for letter in letters(bench)] == (
        [(job_id, code)] if code in DEADLY else []
    )


def test_the_document_knows_every_reason() -> None:
    assert set(get_args(documents._Reason)) == set(DEADLY)


def test_letters_are_counted_by_reason_and_version_and_read_page_by_page(
    bench: Bench, make_caller: Callable[..., Caller]
) -> None:
    first = [fail(bench, "forward_failed") for _ in range(3)]
    fail(bench, "out_of_memory")
    last = fail(bench.as_(make_caller()), "forward_failed")
    found = DeadLetterGroups.model_validate(bench.caller.get(f"{PATH}/groups").json).data

    assert [(group.reason, group.model_version, group.count, group.tenants) for group in found] == [
        ("forward_failed", "1", 4, 2),
        ("out_of_memory", "1", 1, 1),
    ]
    assert found[0].first_at < found[0].latest_at
    asked = f"{PATH}?reason=forward_failed&model=tiny&version=1&limit=3"
    page = bench.caller.get(asked).json
    rest = bench.caller.get(f"{asked}&after={page['next']}").json
    assert [letter["job_id"] for letter in page["data"] + rest["data"]] == [last, *first[::-1]]
    assert (page["has_more"], rest["has_more"], found[0].latest_id) == (True, False, page["data"][0]["id"])
    assert len(letters(bench, f"?tenant={bench.caller.tenant_id}")) == 4


def test_a_replay_runs_the_request_again_for_its_tenant_once(bench: Bench, make_caller: Callable[..., Caller]) -> None:
    job_id = fail(bench, "forward_failed", tags=["theirs"])
    (letter,) = letters(bench)
    operator = bench.as_(make_caller())

    replayed = settle(operator, letter, "replay")
    again = settle(operator, letter, "replay")

    assert (replayed.status_code, replayed.json) == (200, again.json)
    (made,) = bench.listed("&status=queued")
    assert (made["id"], made["retry_of"], made["tags"]) == (replayed.json["replay_job_id"], job_id, ["theirs"])
    assert (letters(bench), len(letters(bench, "?status=replayed"))) == ([], 1)
    (entry,) = bench.caller.get("/v1/audit?action=dead_letter.replayed").json["data"]
    assert (entry["target"], entry["details"]["replay"]) == (letter["id"], made["id"])
    refused = settle(operator, letter, "discard")
    assert (refused.status_code, refused.json["code"], refused.json["status_now"]) == (
        409, "dead_letter_settled", "replayed",
    )  # fmt: skip


def test_a_replay_that_the_tenants_limits_refuse_leaves_the_letter_open(bench: Bench, database: Database) -> None:
    fail(bench, "forward_failed")
    bench.caller.submit()
    with database.transaction() as session:
        session.execute(update(Tenant).values(max_queued_jobs=1))
    (letter,) = letters(bench)
    assert settle(bench, letter, "replay").status_code == 429
    assert letters(bench) == [letter]


def test_a_discarded_letter_is_put_away_and_its_job_stays_as_it_is(bench: Bench) -> None:
    job_id = fail(bench, "internal_error")
    (letter,) = letters(bench)
    for _ in range(2):
        assert settle(bench, letter, "discard").json["status"] == "discarded"
    assert settle(bench, letter, "replay").status_code == 409
    assert (letters(bench), bench.status(job_id), bench.listed("&status=queued")) == ([], "failed", [])
    assert len(bench.caller.get("/v1/audit?action=dead_letter.discarded").json["data"]) == 1


@pytest.mark.parametrize(("action", "ends_as"), [("replay", "replayed"), ("discard", "discarded")])
def test_a_group_is_settled_as_a_bulk_operation(
    bench: Bench, make_caller: Callable[..., Caller], action: str, ends_as: str
) -> None:
    other = bench.as_(make_caller())
    mine, theirs = fail(bench, "forward_failed"), fail(other, "forward_failed")
    fail(bench, "out_of_memory")
    answer = bench.caller.post(f"{PATH}/bulk", {"action": action, "filter": {"reason": "forward_failed"}})
    assert answer.status_code == 202, answer.text
    bench.work()

    done = BulkDetail.model_validate(bench.get(answer.json["id"]))
    assert (done.status, done.total, done.done, done.failed) == ("completed", 2, 2, 0)
    assert {letter["job_id"] for letter in letters(bench, f"?status={ends_as}")} == {mine, theirs}
    assert [letter["reason"] for letter in letters(bench)] == ["out_of_memory"]
    wanted = {"replay": [[mine], [theirs]], "discard": [[], []]}[action]
    assert [[job["retry_of"] for job in one.listed("&status=queued")] for one in (bench, other)] == wanted


def test_operators_operations_are_hidden_from_the_rest_of_their_tenant(bench: Bench, database: Database) -> None:
    fail(bench, "forward_failed")
    answer = bench.caller.post(f"{PATH}/bulk", {"action": "discard", "filter": {}})
    with database.transaction() as session:
        tenant_id = bench.caller.tenant_id
        _, key = create_api_key(session, tenant_id=tenant_id, name="a", scopes=(Scope.ADMIN,), environment="test")
    colleague = Caller(bench.caller.client, tenant_id, key)
    path = f"/v1/bulk/{answer.json['id']}"
    assert colleague.get("/v1/bulk").json["data"] == []
    assert colleague.get(path).status_code == colleague.post(f"{path}/cancel").status_code == 404
    assert bench.caller.post(f"{path}/cancel").json["status"] == "cancelled"
