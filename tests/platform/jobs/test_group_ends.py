"""Jobs that end together: in one transaction, as each would alone, and never by a holder whose lease is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.fairness.models import FairShare
from penstock.jobs import lease
from penstock.jobs.events import events_after
from penstock.jobs.journal import JournalEntry
from penstock.jobs.lease import Finish, Held
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment
from penstock.usage.budgets import list_budgets, set_budget
from penstock.usage.models import UsageEntry
from penstock.usage.prices import NewPrice, set_price
from penstock.usage.spent import Spent
from penstock.webhooks.models import WebhookDelivery
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from tests.factories import make_deployment, make_tenant, submit_job

SPENT = Spent(cached_tokens=1, computed_tokens=4, device_seconds=2.0, queue_seconds=0.25)


@dataclass(frozen=True)
class House:
    """Two tenants, one with a budget, and the deployment that they want."""

    database: Database
    tenants: tuple[Tenant, Tenant]
    deployment: Deployment

    def held(self, tenants: Sequence[int] = (0, 1, 0), **body: Any) -> list[Held]:
        """Running jobs of these tenants, in the order of their submission."""
        with self.database.transaction() as session:
            ids = [submit_job(session, self.tenants[at], params={"max_tokens": 3}, **body).id for at in tenants]
        with self.database.transaction() as session:
            claims = lease.claim_all(
                session, worker_id="wrk_a", deployment_id=self.deployment.id, lease_seconds=60, most=len(ids)
            )
        fences = {claim.job.id: claim.fence for claim in claims}
        return [Held(job_id, fences[job_id]) for job_id in ids]

    def finish(self, ends: Sequence[tuple[Held, Finish]]) -> list[Job | None]:
        with self.database.transaction() as session:
            return lease.finish_all(session, ends)

    def states(self, held: Sequence[Held]) -> list[str]:
        with self.database.transaction() as session:
            return [session.get_one(Job, each.job_id).state for each in held]


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        deployment = make_deployment(session)
        tenants = (make_tenant(session), make_tenant(session))
        set_price(
            session,
            NewPrice("tiny", "EUR", Decimal(1000), Decimal(1000), Decimal(1000), Decimal(0)),
            created_by="a test",
        )
        set_budget(session, tenants[0].id, "EUR", Decimal(1))
        return House(database, tenants, deployment)


def said(words: int, text: str = "word ") -> list[JournalEntry]:
    return [JournalEntry(0, index, 100 + index, text, None, 1) for index in range(words)]


def end(words: int = 2, state: JobState = JobState.SUCCEEDED, **how: Any) -> Finish:
    return Finish(state, said(words), prompt_tokens=2, spent=SPENT, first_token_seconds=0.5, **how)


def test_each_gets_its_own_end(house: House) -> None:
    held = house.held(webhook={"url": "http://127.0.0.1:9/hook"})
    failure = {"code": "internal_error", "message": "it broke"}
    ends = [end(1), end(3), end(2, JobState.FAILED, error=failure)]
    jobs = house.finish(list(zip(held, ends, strict=True)))
    assert [job and (job.id, job.state, job.output_tokens) for job in jobs] == [
        (held[0].job_id, "succeeded", 1),
        (held[1].job_id, "succeeded", 3),
        (held[2].job_id, "failed", 2),
    ]
    with house.database.transaction() as session:
        for each, told in zip(held, ends, strict=True):
            job = session.get_one(Job, each.job_id)
            assert job.output is not None
            assert len(job.output["choices"][0]["token_ids"]) == len(told.entries)
            assert (job.error, job.cached_tokens, job.lease_holder) == (told.error, 1, None)
            run = session.get_one(JobRun, (each.job_id, each.fence))
            assert (run.outcome, run.computed_tokens, run.queue_seconds) == ("finished", 4, 0.25)
            assert job.first_token_at is not None
            assert (job.first_token_at - run.started_at).total_seconds() == 0.5
            assert lease.load_checkpoint(session, each.job_id) == told.entries
            assert events_after(session, each.job_id, 2)[0].type == f"job.{told.state}"
        entries = {entry.job_id: entry for entry in session.scalars(select(UsageEntry))}
        assert [entries[each.job_id].output_tokens for each in held] == [1, 3, 2]
        assert [entries[each.job_id].cost for each in held] == [Decimal("0.003"), Decimal("0.005"), 0]
        told_of = session.scalars(select(WebhookDelivery.job_id)).all()
        assert sorted(map(str, told_of)) == sorted(each.job_id for each in held)


def test_reservations_and_counters_are_settled_for_all(house: House) -> None:
    held = house.held()
    house.finish([(each, end()) for each in held])
    with house.database.transaction() as session:
        (budget,) = list_budgets(session, house.tenants[0].id)
        assert (budget.reserved, budget.spent) == (Decimal(0), 2 * Decimal("0.004"))
        charged = {row.tenant_id: row.charged for row in session.scalars(select(FairShare))}
        assert [charged[tenant.id] for tenant in house.tenants] == [2 * (1 + 2 * 2), 1 + 2 * 2]


def test_what_was_charged_before_is_not_charged_again(house: House) -> None:
    (held,) = house.held([1])
    with house.database.transaction() as session:
        lease.checkpoint(session, [lease.Progress(held, said(1), 0.1, SPENT)])
    house.finish([(held, end(3))])
    with house.database.transaction() as session:
        assert session.scalars(select(FairShare.charged).where(FairShare.tenant_id == house.tenants[1].id)).one() == 7


def test_a_lost_lease_is_left_out_and_harms_nobody(house: House) -> None:
    lost, taken, kept = held = house.held()
    with house.database.transaction() as session:
        for each in (lost, taken):
            lease.hand_back(session, each, RunOutcome.LEASE_LOST, "it fell silent", max_own_crashes=3)
    with house.database.transaction() as session:
        for _ in range(2):
            assert lease.claim(session, worker_id="wrk_b", deployment_id=house.deployment.id, lease_seconds=60)
    with house.database.transaction() as session:
        lease.finish(session, Held(taken.job_id, 2), end(3))
    jobs = house.finish([(each, end(1)) for each in held])
    assert [job and job.id for job in jobs] == [None, None, kept.job_id]
    with house.database.transaction() as session:
        row = session.get_one(Job, lost.job_id)
        assert (row.state, row.fence, row.lease_holder, row.output) == ("running", 2, "wrk_b", None)
        assert session.get_one(JobRun, (lost.job_id, 2)).ended_at is None
        assert session.get_one(Job, taken.job_id).output_tokens == 3
        assert {entry.job_id for entry in session.scalars(select(UsageEntry))} == {taken.job_id, kept.job_id}
        assert [event.type for event in events_after(session, lost.job_id, 0)].count("job.succeeded") == 0


def test_two_fences_of_one_job_are_told_apart(house: House) -> None:
    (stale,) = house.held([0])
    with house.database.transaction() as session:
        lease.hand_back(session, stale, RunOutcome.LEASE_LOST, "it fell silent", max_own_crashes=3)
        claim = lease.claim(session, worker_id="wrk_a", deployment_id=house.deployment.id, lease_seconds=60)
    assert claim is not None
    current = Held(claim.job.id, claim.fence)
    jobs = house.finish([(stale, end(1)), (current, end(2))])
    assert [job and job.output_tokens for job in jobs] == [None, 2]


def test_earlier_runs_count_too(house: House) -> None:
    (first,) = house.held([0])
    with house.database.transaction() as session:
        lease.hand_back(
            session, first, RunOutcome.HANDED_BACK, "the worker is stopping", max_own_crashes=3, spent=SPENT
        )
        claim = lease.claim(session, worker_id="wrk_a", deployment_id=house.deployment.id, lease_seconds=60)
    assert claim is not None
    house.finish([(Held(claim.job.id, claim.fence), end())])
    with house.database.transaction() as session:
        entry = session.get_one(UsageEntry, first.job_id)
        assert (entry.computed_tokens, entry.device_seconds) == (8, 4.0)


def test_all_of_it_is_one_transaction(house: House) -> None:
    """One whose text PostgreSQL cannot keep takes the others back with it: who called writes them one by one."""
    held = house.held()
    bad = Finish(JobState.SUCCEEDED, said(1, "\x00"), prompt_tokens=2, spent=SPENT)
    with pytest.raises(DBAPIError):
        house.finish([(held[0], end()), (held[1], bad), (held[2], end())])
    assert house.states(held) == ["running"] * 3
    with house.database.transaction() as session:
        assert session.scalars(select(UsageEntry)).all() == []
