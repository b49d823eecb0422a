"""Bulk cancels and replays from their request to their end: what they are about, each thing once, at a bounded cost."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.bulk import tending
from penstock.bulk.documents import BulkDetail, BulkDocument, BulkPage
from penstock.bulk.models import BulkItem
from penstock.bulk.services import MOST_UNFINISHED
from penstock.bulk.work import CancelJobs
from penstock.db import Database
from penstock.errors import JobAlreadyFinished
from penstock.jobs import services as jobs
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.usage.budgets import list_budgets, set_budget
from penstock.usage.prices import NewPrice, set_price
from sqlalchemy import delete, func, select, update

from tests.platform.api.conftest import Caller
from tests.platform.bulk.conftest import Bench, statements

A_JOB = f"job_{'0' * 26}"


def test_a_bulk_cancel_ends_what_the_filter_names_and_nothing_else(bench: Bench) -> None:
    running = bench.caller.submit(tags=["red"])
    bench.worker.claim()
    waiting = [bench.caller.submit(tags=["red"]) for _ in range(3)]
    spared = bench.caller.submit(tags=["blue"])

    answer = bench.caller.post("/v1/bulk", {"action": "cancel", "filter": {"tag": "red"}})
    begun = BulkDocument.model_validate(answer.json)
    assert (begun.status, begun.total, begun.filter) == ("gathering", 0, {"tag": "red", "status": "queued,running"})
    assert answer.headers["Location"] == f"/v1/bulk/{begun.id}"
    bench.work()

    done = BulkDetail.model_validate(bench.get(begun.id))
    assert (done.status, done.total, done.done, done.skipped, done.failed) == ("completed", 4, 4, 0, 0)
    assert done.finished_at is not None
    assert {bench.status(job_id) for job_id in waiting} == {"cancelled"}
    assert bench.caller.get(f"/v1/jobs/{running}").json["cancel_requested_at"] is not None
    assert bench.status(spared) == "queued"
    assert bench.events() == ["bulk.created", "bulk.running", "bulk.completed"]
    assert BulkPage.model_validate(bench.caller.get("/v1/bulk").json).data[0].done == 4
    (entry,) = bench.caller.get("/v1/audit?action=bulk.created").json["data"]
    assert (entry["target"], entry["details"]["filter"]["tag"]) == (begun.id, "red")


def test_a_bulk_replay_makes_a_new_job_of_each_that_did_not_succeed(bench: Bench) -> None:
    failed = [bench.finished(tags=["night"], params={"seed": 7}) for _ in range(3)]
    bench.finished(JobState.SUCCEEDED, tags=["night"])
    bench.caller.submit(tags=["night"])

    done = bench.run("replay", tag="night")

    assert (done["status"], done["total"], done["done"]) == ("completed", 3, 3)
    made = [job for job in bench.listed("&tag=night") if job["retry_of"]]
    assert sorted(job["retry_of"] for job in made) == failed
    assert {(job["status"], job["params"]["seed"]) for job in made} == {("queued", 7)}
    assert [job["retry_of"] for job in made] == sorted(failed, reverse=True)  # their order is kept


def test_jobs_that_are_named_by_their_ids_are_acted_on_each_once(bench: Bench) -> None:
    ended = bench.finished(JobState.SUCCEEDED)
    chosen = [bench.caller.submit(tags=["red"]) for _ in range(2)]
    spared = bench.caller.submit(tags=["red"])

    answer = bench.caller.post("/v1/bulk", {"action": "cancel", "ids": [*chosen, ended, chosen[0]]})
    begun = BulkDocument.model_validate(answer.json)
    assert (answer.status_code, begun.status, begun.total, begun.filter) == (202, "running", 3, {})
    bench.work()

    assert bench.counts(begun.id) == (3, 2, 1, 0)
    assert bench.status(spared) == "queued"
    assert [bench.status(job_id) for job_id in (*chosen, ended)] == ["cancelled", "cancelled", "succeeded"]
    assert bench.events() == ["bulk.created", "bulk.running", "bulk.completed"]
    (entry,) = bench.caller.get("/v1/audit?action=bulk.created").json["data"]
    assert entry["details"] == {"action": "cancel", "jobs": 3}


def test_a_job_that_is_named_is_replayed_even_if_it_succeeded(bench: Bench) -> None:
    named = bench.finished(JobState.SUCCEEDED)
    bench.finished(JobState.SUCCEEDED)
    answer = bench.caller.post("/v1/bulk", {"action": "replay", "ids": [named]})
    bench.work()
    assert bench.counts(answer.json["id"]) == (1, 1, 0, 0)
    assert [job["retry_of"] for job in bench.listed() if job["retry_of"]] == [named]


def test_another_tenants_job_is_not_there_to_be_named_and_nothing_is_begun(
    bench: Bench, make_caller: Callable[..., Caller]
) -> None:
    own, theirs = bench.caller.submit(), make_caller().submit()
    refused = bench.caller.post("/v1/bulk", {"action": "cancel", "ids": [own, theirs]})
    assert (refused.status_code, refused.json["code"], refused.json["field"]) == (422, "validation_failed", "ids")
    assert f"there is no job '{theirs}'" in refused.json["detail"]
    assert bench.caller.get("/v1/bulk").json["data"] == []
    bench.work()
    assert bench.status(own) == "queued"


def test_succeeded_jobs_are_replayed_only_when_they_are_named(bench: Bench) -> None:
    succeeded = bench.finished(JobState.SUCCEEDED)
    done = bench.run("replay", status="succeeded,queued", model="tiny")
    assert (done["total"], done["filter"]["status"]) == (1, "succeeded")
    assert [job["retry_of"] for job in bench.listed("&status=queued")] == [succeeded]


def test_a_replay_is_not_about_the_jobs_that_it_makes(bench: Bench) -> None:
    bench.finished()
    bulk_id = bench.begin("replay", model="tiny")
    bench.work(most=2)
    bench.worker.claim()
    bench.worker.finish(JobState.FAILED)
    bench.work()
    assert bench.counts(bulk_id) == (1, 1, 0, 0)


def test_a_crash_amid_a_step_undoes_all_of_it_and_the_next_one_does_it_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [bench.finished() for _ in range(4)]
    bulk_id = bench.begin("replay", status="failed")
    bench.work(most=1)
    real, calls = jobs.retry, []

    def dies_at_the_third(*args: Any, **kwargs: Any) -> Job:
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("the process dies here")
        return real(*args, **kwargs)

    monkeypatch.setattr(jobs, "retry", dies_at_the_third)
    bench.work()
    assert len(calls) == 3
    assert bench.counts(bulk_id) == (4, 0, 0, 0)
    assert bench.listed("&status=queued") == []

    bench.wake()
    bench.work()
    assert bench.counts(bulk_id) == (4, 4, 0, 0)
    assert sorted(job["retry_of"] for job in bench.listed("&status=queued")) == failed
    with bench.workshop.database.transaction() as session:
        results = session.scalars(select(BulkItem.result_id).order_by(BulkItem.target_id)).all()
    assert sorted(map(str, results)) == sorted(job["id"] for job in bench.listed("&status=queued"))


def test_one_that_others_work_at_is_passed_over(bench: Bench) -> None:
    bench.caller.submit()
    first, second = bench.begin("cancel", model="tiny"), bench.begin("cancel", status="queued")
    with bench.workshop.database.transaction() as session:
        taken = tending._take(session)
        assert taken is not None
        assert taken.id == first
        bench.work()
        assert bench.get(second)["status"] == "completed"
        assert bench.get(first)["status"] == "gathering"
    bench.work()
    assert bench.counts(first) == (0, 0, 0, 0)


def test_a_job_that_somebody_holds_waits_for_its_turn(bench: Bench) -> None:
    held, free = bench.caller.submit(), bench.caller.submit()
    bulk_id = bench.begin("cancel", model="tiny")
    bench.work(most=1)
    with bench.workshop.database.transaction() as session:
        session.execute(select(Job.id).where(Job.id == held).with_for_update())
        bench.work()
        assert bench.counts(bulk_id) == (2, 1, 0, 0)
        assert (bench.status(held), bench.status(free)) == ("queued", "cancelled")
    bench.wake()
    bench.work()
    assert (bench.counts(bulk_id), bench.status(held)) == ((2, 2, 0, 0), "cancelled")


def test_what_ended_or_went_meanwhile_is_skipped(bench: Bench, database: Database) -> None:
    ended, gone, open_ = (bench.caller.submit() for _ in range(3))
    bulk_id = bench.begin("cancel", model="tiny")
    bench.work(most=1)
    bench.caller.post(f"/v1/jobs/{ended}/cancel")
    with database.transaction() as session:
        session.execute(delete(Job).where(Job.id == gone))
    bench.work()
    assert bench.counts(bulk_id) == (3, 1, 2, 0)
    assert bench.status(open_) == "cancelled"


def test_a_replay_waits_while_the_queue_is_full_and_goes_on(bench: Bench, database: Database) -> None:
    failed = [bench.finished() for _ in range(3)]
    with database.transaction() as session:
        session.execute(update(Tenant).values(max_queued_jobs=2))
    bulk_id = bench.begin("replay", status="failed")
    bench.work()
    waits = bench.get(bulk_id)
    assert (waits["status"], waits["done"], waits["blocker"]["code"]) == ("running", 2, "quota_exceeded")

    bench.worker.claim()
    bench.worker.finish()
    bench.wake()
    bench.work()
    done = bench.get(bulk_id)
    assert (done["status"], done["done"], done["blocker"]) == ("completed", 3, None)
    assert len({job["retry_of"] for job in bench.listed() if job["retry_of"]}) == len(failed)


def test_what_cannot_be_replayed_is_told_by_job(bench: Bench, database: Database) -> None:
    job_id = bench.finished()
    with database.transaction() as session:
        set_price(session, NewPrice("tiny", "EUR", Decimal(1), Decimal(1), Decimal(1)), created_by="test")
        set_budget(session, bench.caller.tenant_id, "EUR", Decimal("0.000001"))
    done = bench.run("replay", status="failed")
    assert (done["status"], done["failed"]) == ("completed", 1)
    (failure,) = done["failures"]
    assert (failure["id"], failure["code"]) == (job_id, "budget_exceeded")
    assert bench.listed("&status=queued") == []


def test_a_cancel_frees_the_budget_of_each(bench: Bench, database: Database) -> None:
    with database.transaction() as session:
        set_price(session, NewPrice("tiny", "EUR", Decimal(1), Decimal(1), Decimal(1)), created_by="test")
        set_budget(session, bench.caller.tenant_id, "EUR", Decimal(100))
    for _ in range(5):
        bench.caller.submit(params={"max_tokens": 10})
    bench.run("cancel", model="tiny")
    with database.transaction() as session:
        (budget,) = list_budgets(session, bench.caller.tenant_id)
    assert (budget.reserved, budget.spent) == (Decimal(0), Decimal(0))


def test_a_key_for_other_models_replays_none(bench: Bench, database: Database) -> None:
    bench.finished()
    with database.transaction() as session:
        scopes = (Scope.JOBS_READ, Scope.JOBS_WRITE)
        tenant_id = bench.caller.tenant_id
        _, key = create_api_key(
            session, tenant_id=tenant_id, name="narrow", scopes=scopes, environment="test", models=["other"]
        )
    narrow = bench.as_(Caller(bench.caller.client, tenant_id, key))
    done = narrow.run("replay", status="failed")
    assert [failure["code"] for failure in done["failures"]] == ["model_not_allowed"]


def test_cancelling_an_operation_leaves_the_rest_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CancelJobs, "at_once", 2)
    for _ in range(5):
        bench.caller.submit()
    bulk_id = bench.begin("cancel", model="tiny")
    bench.work(most=2)
    for _ in range(2):
        stopped = bench.caller.post(f"/v1/bulk/{bulk_id}/cancel").json
        assert (stopped["status"], stopped["total"], stopped["done"]) == ("cancelled", 5, 2)
    assert bench.work() == 0
    assert len(bench.listed("&status=queued")) == 3
    assert bench.events() == ["bulk.created", "bulk.running", "bulk.cancelled"]
    other = bench.run("cancel", model="tiny")
    answer = bench.caller.post(f"/v1/bulk/{other['id']}/cancel")
    assert (answer.status_code, answer.json["code"]) == (409, "bulk_operation_finished")


def test_an_idempotency_key_begins_one_operation(bench: Bench) -> None:
    body = {"action": "cancel", "filter": {"tag": "red"}}
    first = bench.caller.post("/v1/bulk", body, Idempotency_Key="k")
    again = bench.caller.post("/v1/bulk", body, Idempotency_Key="k")
    other = bench.caller.post("/v1/bulk", body | {"filter": {"tag": "blue"}}, Idempotency_Key="k")
    assert (first.json["id"], "Idempotent-Replayed" in first.headers) == (again.json["id"], False)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert len(bench.caller.get("/v1/bulk").json["data"]) == 1


def test_a_tenant_has_so_many_operations_going_and_no_more(bench: Bench) -> None:
    for _ in range(MOST_UNFINISHED):
        bench.begin("cancel", tag="red")
    refused = bench.caller.post("/v1/bulk", {"action": "cancel", "filter": {"tag": "red"}})
    assert (refused.status_code, refused.json["code"]) == (409, "too_many_bulk_operations")
    bench.work()
    bench.begin("cancel", tag="red")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"action": "cancel", "filter": {}}, "must name something"),
        ({"action": "erase", "filter": {"tag": "a"}}, "action"),
        ({"action": "cancel", "filter": {"status": "failed"}}, "queued and running"),
        ({"action": "replay", "filter": {"status": "queued"}}, "final"),
        ({"action": "replay", "filter": {"colour": "red"}}, "filter.colour"),
        ({"action": "replay", "filter": {"version": "1"}}, "a version needs its model"),
        ({"action": "replay"}, "by a filter or by their ids"),
        ({"action": "replay", "filter": {"tag": "a"}, "ids": [A_JOB]}, "by a filter or by their ids"),
        ({"action": "cancel", "ids": []}, "at least 1"),
        ({"action": "cancel", "ids": [A_JOB] * 1001}, "at most 1000"),
        ({"action": "cancel", "ids": ["bulk_1"]}, "ids.0"),
        ({"action": "cancel", "ids": [A_JOB]}, f"there is no job '{A_JOB}'"),
    ],
)
def test_a_wrong_request_is_refused(bench: Bench, body: Any, said: str) -> None:
    answer = bench.caller.post("/v1/bulk", body)
    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")
    assert said in answer.text


def test_an_operation_takes_so_many_jobs_and_says_when_there_are_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "MOST_TARGETS", 5)
    monkeypatch.setattr(tending, "_GATHERED_AT_ONCE", 2)
    for _ in range(7):
        bench.caller.submit()
    done = bench.run("cancel", model="tiny")
    assert (done["total"], done["done"], done["truncated"]) == (5, 5, True)
    rest = bench.run("cancel", model="tiny")
    assert (rest["total"], rest["truncated"], len(bench.listed("&status=queued"))) == (2, False, 0)


def test_a_flood_of_cancels_costs_a_fixed_number_of_statements_each(bench: Bench, database: Database) -> None:
    """The same for the first of few jobs as for one among many, and next to nothing when it is asked again."""

    def cancel(job_id: str) -> None:
        with database.transaction() as session:
            jobs.cancel(session, bench.caller.tenant_id, job_id)

    def cost(job_id: str) -> int:
        with statements(database) as asked:
            cancel(job_id)
        return len(asked)

    few = cost(bench.caller.submit())
    many = [bench.caller.submit() for _ in range(60)]
    assert {cost(job_id) for job_id in many[:5]} == {few}
    with statements(database) as asked, pytest.raises(JobAlreadyFinished):
        cancel(many[0])
    assert not [one for one in asked if one.startswith(("UPDATE", "INSERT"))]

    bulk_id = bench.begin("cancel", model="tiny")
    bench.work(most=1)
    with statements(database) as asked:
        bench.work(most=1)
    assert bench.counts(bulk_id)[:2] == (55, 50)
    assert len(asked) <= 50 * few + 10
    with database.transaction() as session:
        assert session.scalar(select(func.count()).where(Job.state == "queued")) == 5
