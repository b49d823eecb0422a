"""`/v1/usage`, prices and budgets: sums that are right, and each tenant's own."""

import csv
import io
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.audit import AuditFilter, list_entries
from penstock.auth.services import Scope
from penstock.clock import iso, utc_now
from penstock.db import Database
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.states import JobState
from penstock.usage.models import UsageEntry
from penstock.usage.spent import Spent
from sqlalchemy import update

from tests.platform.api.conftest import Caller, Worker

PRICE = {"model": "tiny", "currency": "EUR", "input": "1000", "cached": 100, "output": "5000"}


@pytest.fixture
def operator(make_caller: Callable[..., Caller]) -> Caller:
    return make_caller((Scope.OPERATOR,))


@pytest.fixture
def ended(database: Database, worker: Worker) -> Callable[..., str]:
    """Submits a job for somebody and ends it, as having generated so many tokens."""

    def end(caller: Caller, words: int = 1, spent: Spent | None = None, **body: Any) -> str:
        job_id = caller.submit(params={"max_tokens": 10}, **body)
        held = worker.claim()
        entries = [JournalEntry(0, index, 100, "word", None, 1) for index in range(words)]
        result = lease.Finish(JobState.SUCCEEDED, entries, prompt_tokens=2, spent=spent)
        with database.transaction() as session:
            lease.finish(session, held, result)
        return job_id

    return end


def rows(answer: Any) -> list[tuple[Any, ...]]:
    """Each row's groups, jobs, output tokens and cost."""
    assert answer.status_code == 200, answer.text
    return [
        (*row["group"].values(), row["jobs"], row["output_tokens"], row["cost"] and float(row["cost"]))
        for row in answer.json["data"]
    ]


def test_usage_is_summed_by_whatever_is_asked(
    caller: Caller, operator: Caller, ended: Callable[..., str], database: Database
) -> None:
    ended(caller, 1, tags=["a"])
    assert operator.post("/v1/admin/prices", PRICE).status_code == 201
    ended(caller, 2, tags=["a", "b"])
    yesterday = ended(caller, 3)
    with database.transaction() as session:
        moved = update(UsageEntry).where(UsageEntry.job_id == yesterday)
        session.execute(moved.values(created_at=UsageEntry.created_at - timedelta(days=1)))
    today, before = (f"{utc_now() - timedelta(days=days):%Y-%m-%d}" for days in (0, 1))

    assert rows(caller.get("/v1/usage?by=model")) == [("tiny", 1, 1, None), ("tiny", 2, 5, 0.029)]
    assert rows(caller.get("/v1/usage?by=day")) == [(before, 1, 3, 0.017), (today, 1, 1, None), (today, 1, 2, 0.012)]
    by_tag = rows(caller.get("/v1/usage?by=tag,version"))
    assert by_tag == [("", "1", 1, 3, 0.017), ("a", "1", 1, 1, None), ("a", "1", 1, 2, 0.012), ("b", "1", 1, 2, 0.012)]
    assert rows(caller.get("/v1/usage?by=model&tag=b")) == [("tiny", 1, 2, 0.012)]
    (by_key,) = {row[0] for row in rows(caller.get("/v1/usage?by=key"))}
    assert by_key.startswith("key_")
    since = iso(utc_now() - timedelta(hours=1))
    assert sum(row[1] for row in rows(caller.get(f"/v1/usage?by=model&since={since}"))) == 2
    assert sum(row[1] for row in rows(caller.get(f"/v1/usage?by=model&until={since}"))) == 1
    assert rows(caller.get("/v1/usage?model=other")) == []


def test_a_tenant_sees_its_own_and_an_operator_all(
    make_caller: Callable[..., Caller], operator: Caller, ended: Callable[..., str]
) -> None:
    one, other = make_caller(), make_caller()
    for caller in (one, one, other):
        ended(caller)
    assert [row[1] for row in rows(one.get("/v1/usage?by=tenant"))] == [2]
    assert [row[1] for row in rows(other.get("/v1/usage?by=tenant"))] == [1]
    assert {row[0]: row[1] for row in rows(operator.get("/v1/admin/usage?by=tenant"))} == {
        one.tenant_id: 2,
        other.tenant_id: 1,
    }
    assert rows(operator.get(f"/v1/admin/usage?by=model&tenant={other.tenant_id}")) == [("tiny", 1, 1, None)]
    assert one.get("/v1/usage?tenant=another").status_code == 422


def test_pages_join_without_a_seam(caller: Caller, ended: Callable[..., str]) -> None:
    for number in range(5):
        ended(caller, number + 1, tags=[f"tag-{number}"])
    whole = caller.get("/v1/usage?by=tag").json["data"]
    found, path = [], "/v1/usage?by=tag&limit=2"
    after: str | None = ""
    while after is not None:
        page = caller.get(path + (f"&after={after}" if after else "")).json
        assert page["has_more"] is (page["next"] is not None)
        found += page["data"]
        after = page["next"]
    assert found == whole
    assert len(whole) == 5
    other_question = caller.get(f"/v1/usage?by=tag,model&after={caller.get(path).json['next']}")
    assert (other_question.status_code, other_question.json["field"]) == (422, "after")
    assert caller.get("/v1/usage?by=tag&after=nonsense").status_code == 422
    for forged in ('["a\\u0000", ""]', '["\\ud800", ""]', "[" * 1400):
        after = urlsafe_b64encode(forged.encode()).decode().rstrip("=")
        assert caller.get(f"/v1/usage?by=tag&after={after}").status_code == 422, forged[:20]


def test_csv_says_the_same_and_no_cell_is_a_formula(caller: Caller, ended: Callable[..., str]) -> None:
    ended(caller, 2, Spent(computed_tokens=3, device_seconds=1.5, joules=7.0), tags=["=1+1"])
    ended(caller, 1, tags=["z"])
    answer = caller.get("/v1/usage?by=tag&format=csv&limit=1")
    assert answer.content_type == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["tag"], row["output_tokens"], row["device_seconds"], row["joules"]) == ("'=1+1", "2", "1.5", "7.0")
    following = caller.get(f"/v1/usage?by=tag&format=csv&after={answer.headers['Penstock-Next']}")
    assert [row["tag"] for row in csv.DictReader(io.StringIO(following.text))] == ["z"]
    assert "Penstock-Next" not in following.headers


def test_energy_is_summed_only_where_all_was_measured(caller: Caller, ended: Callable[..., str]) -> None:
    ended(caller, 1, Spent(computed_tokens=3, joules=7.0), tags=["measured"])
    ended(caller, 1, Spent(computed_tokens=3, joules=7.0), tags=["mixed"])
    ended(caller, 1, Spent(computed_tokens=3, energy_note="no meter"), tags=["mixed"])
    found = {row["group"]["tag"]: row["joules"] for row in caller.get("/v1/usage?by=tag").json["data"]}
    assert found == {"measured": 7.0, "mixed": None}


@pytest.mark.parametrize("query", ["by=colour", "by=day,day", "by=", "limit=0", "format=xml", "since=yesterday"])
def test_a_question_that_makes_no_sense_is_refused(caller: Caller, query: str) -> None:
    assert caller.get(f"/v1/usage?{query}").status_code == 422


def test_prices_are_set_and_listed(operator: Caller) -> None:
    later = iso(utc_now() + timedelta(days=1))
    first = operator.post("/v1/admin/prices", PRICE).json
    second = operator.post("/v1/admin/prices", PRICE | {"version": "1", "valid_from": later, "device_second": "0.1"})
    assert second.status_code == 201
    assert (first["input"], first["cached"], first["device_second"]) == (
        "1000.000000000",
        "100.000000000",
        "0.000000000",
    )
    page = operator.get("/v1/admin/prices?limit=1").json
    assert [price["id"] for price in page["data"]] == [second.json["id"]]
    assert operator.get(f"/v1/admin/prices?after={page['next']}").json["data"] == [first]
    again = operator.post("/v1/admin/prices", PRICE | {"version": "1", "valid_from": later})
    assert (again.status_code, again.json["field"]) == (409, "valid_from")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": "-1"}, "input"),
        ({"input": "1e3"}, "input"),
        ({"output": "0.0000000001"}, "output"),
        ({"cached": None}, "cached"),
        ({"input": True}, "input"),
        ({"input": "١"}, "input"),
        ({"currency": "euro"}, "currency"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_price_that_cannot_be_is_refused_by_its_field(operator: Caller, change: dict[str, Any], field: str) -> None:
    answer = operator.post("/v1/admin/prices", PRICE | change)
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, field)


def test_a_budget_is_set_seen_and_held(caller: Caller, operator: Caller, worker: Worker, database: Database) -> None:
    operator.post("/v1/admin/prices", PRICE)
    path = f"/v1/admin/tenants/{caller.tenant_id}/budgets"
    assert operator.call("PUT", path, {"amount": "0.06", "currency": "EUR"}).status_code == 200
    job_id = caller.submit(params={"max_tokens": 10})
    standing = {"object": "budget", "currency": "EUR", "amount": "0.060000000", "spent": "0.000000000"}
    assert caller.get("/v1/budgets").json["data"] == [standing | {"reserved": "0.052000000"}]
    refused = caller.post("/v1/jobs", {"model": "tiny", "input": {"prompt": "x"}, "params": {"max_tokens": 10}})
    assert (refused.status_code, refused.json["code"]) == (402, "budget_exceeded")
    worker.claim()
    worker.write("one", "two")
    worker.finish()
    cost = caller.get(f"/v1/jobs/{job_id}").json["cost"]
    assert (Decimal(cost["amount"]), cost["currency"]) == (Decimal("0.012"), "EUR")
    (budget,) = operator.get(path).json["data"]
    assert (budget["spent"], budget["reserved"]) == ("0.012000000", "0.000000000")
    with database.transaction() as session:
        (entry,), _ = list_entries(session, AuditFilter(action="budget.set"), limit=5)  # type: ignore[arg-type]  # its value
    assert entry.details == {"currency": "EUR", "amount": "0.06"}
    assert (
        operator.call("PUT", "/v1/admin/tenants/ten_absent/budgets", {"amount": "1", "currency": "EUR"}).status_code
        == 404
    )


def test_a_jobs_budget_is_told_and_retried_as_it_was_asked(caller: Caller, operator: Caller, worker: Worker) -> None:
    operator.post("/v1/admin/prices", PRICE)
    budget = {"tokens": 9, "amount": "0.5", "currency": "EUR"}
    job_id = caller.submit(budget=budget)
    worker.claim()
    worker.finish()
    assert caller.get(f"/v1/jobs/{job_id}").json["budget"] == budget
    assert caller.post(f"/v1/jobs/{job_id}/retry").json["budget"] == budget


@pytest.mark.parametrize(
    "budget",
    [{}, {"amount": "1"}, {"currency": "EUR"}, {"amount": "0", "currency": "EUR"}, {"amount": "1", "currency": "€"}],
)
@pytest.mark.usefixtures("deployment")
def test_half_a_budget_is_refused(caller: Caller, budget: dict[str, Any]) -> None:
    answer = caller.post("/v1/jobs", {"model": "tiny", "input": {"prompt": "x"}, "budget": budget})
    assert (answer.status_code, answer.json["field"].split(".")[0]) == (422, "budget")
