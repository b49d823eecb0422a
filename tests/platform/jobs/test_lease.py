"""Leases: one holder at a time, every write fenced, nothing lost between holders."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.errors import LeaseLost
from penstock.jobs import lease
from penstock.jobs.events import events_after
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job, JobRun
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment, Worker
from penstock.usage.models import UsageEntry
from penstock.webhooks.models import WebhookDelivery
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from tests.factories import make_deployment, make_tenant, make_worker, submit_job

LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class House:
    """A tenant, a deployment and a worker that hosts it."""

    database: Database
    tenant: Tenant
    deployment: Deployment
    worker: Worker

    def submit(self, **body: object) -> str:
        with self.database.transaction() as session:
            return submit_job(session, self.tenant, **body).id

    def claim(self, worker_id: str | None = None) -> lease.Claim | None:
        with self.database.transaction() as session:
            return lease.claim(
                session,
                worker_id=worker_id or self.worker.id,
                deployment_id=self.deployment.id,
                lease_seconds=LEASE_SECONDS,
            )

    def claimed(self) -> lease.Held:
        claim = self.claim()
        assert claim is not None
        return lease.Held(claim.job.id, claim.fence)

    def finish(self, held: lease.Held, entries: Sequence[JournalEntry], state: JobState = JobState.SUCCEEDED) -> Job:
        with self.database.transaction() as session:
            return lease.finish(session, held, lease.Finish(state, entries, prompt_tokens=2, cached_tokens=1))

    def hand_back(self, held: lease.Held, outcome: RunOutcome = RunOutcome.HANDED_BACK) -> Job:
        with self.database.transaction() as session:
            return lease.hand_back(session, held, outcome, "by a test", max_own_crashes=3)

    def job(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        deployment = make_deployment(session)
        return House(database, make_tenant(session), deployment, make_worker(session, deployment))


def answer(*words: str, fence: int = 1) -> list[JournalEntry]:
    """The journal of one choice that says the words and stops."""
    tokens = [JournalEntry(0, index, 100 + index, word, None, fence) for index, word in enumerate(words)]
    return [*tokens, JournalEntry(0, len(words), None, "", None, fence, "stop")]


def test_a_claim_takes_class_then_priority_then_age(house: House) -> None:
    old = house.submit()
    batch = house.submit(**{"class": "batch", "priority": 100})
    urgent = house.submit(priority=5)
    young = house.submit()
    order = [claim.job.id for _ in range(4) if (claim := house.claim())]
    assert order == [urgent, old, young, batch]
    assert house.claim() is None


def test_many_claimers_never_share_a_job(house: House) -> None:
    expected = {house.submit() for _ in range(40)}

    def claim_all(worker: int) -> list[str]:
        taken = []
        while (claim := house.claim(f"wrk_{worker}")) is not None:
            taken.append(claim.job.id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for worker in pool.map(claim_all, range(6)) for job_id in worker]
    assert len(taken) == len(expected)
    assert set(taken) == expected


def test_a_finish_is_one_transaction_with_all_that_follows_from_it(house: House) -> None:
    job_id = house.submit(webhook={"url": "http://127.0.0.1:9/hook"})
    job = house.finish(house.claimed(), answer("hello", " world"))
    assert (job.state, job.output_tokens, job.cached_tokens, job.lease_holder) == ("succeeded", 2, 1, None)
    assert job.output == {
        "choices": [{"index": 0, "text": "hello world", "token_ids": [100, 101], "finish_reason": "stop"}]
    }
    with house.database.transaction() as session:
        assert [event.type for event in events_after(session, job_id, 0)] == [
            "job.queued",
            "job.running",
            "job.succeeded",
        ]
        usage = session.get_one(UsageEntry, job_id)
        assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (2, 1, 2)
        delivery = session.scalars(select(WebhookDelivery)).one()
        assert delivery.payload["data"]["output"] == job.output
        run = session.scalars(select(JobRun)).one()
        assert run.outcome == "finished"
        assert lease.load_checkpoint(session, job_id) == answer("hello", " world")


def test_a_job_finishes_exactly_once(house: House) -> None:
    job_id = house.submit()
    held = house.claimed()
    house.finish(held, answer("first"))
    with pytest.raises(LeaseLost, match=job_id):
        house.finish(held, answer("second"))
    output = house.job(job_id).output
    assert output is not None
    assert output["choices"][0]["text"] == "first"


def test_an_old_fence_writes_nothing(house: House) -> None:
    job_id = house.submit()
    zombie = house.claimed()
    house.hand_back(zombie)
    living = house.claimed()
    assert living.fence == zombie.fence + 1
    with pytest.raises(LeaseLost):
        house.finish(zombie, answer("from the dead"))
    with pytest.raises(LeaseLost):
        house.hand_back(zombie)
    with house.database.transaction() as session:
        lease.checkpoint(session, [lease.Progress(zombie, answer("from the dead"), 0.1)])
        assert lease.load_checkpoint(session, job_id) == []
        assert lease.renew(session, worker_id=house.worker.id, held=[zombie], lease_seconds=LEASE_SECONDS) == {}
        assert set(lease.renew(session, worker_id=house.worker.id, held=[living], lease_seconds=LEASE_SECONDS)) == {
            job_id
        }


def test_renewing_tells_of_cancels_and_deadlines(house: House) -> None:
    calm = house.submit()
    late = house.submit(deadline="2099-01-01T00:00:00Z")
    unwanted = house.submit()
    held = [house.claimed() for _ in range(3)]
    with house.database.transaction() as session:
        session.execute(text("UPDATE job SET deadline = now() WHERE id = :id"), {"id": late})
        session.execute(text("UPDATE job SET cancel_requested_at = now() WHERE id = :id"), {"id": unwanted})
    with house.database.transaction() as session:
        renewed = lease.renew(session, worker_id=house.worker.id, held=held, lease_seconds=LEASE_SECONDS)
    assert {job_id: (r.cancel_requested, r.deadline_passed) for job_id, r in renewed.items()} == {
        calm: (False, False),
        late: (False, True),
        unwanted: (True, False),
    }


def test_the_next_holder_gets_the_checkpoint(house: House) -> None:
    house.submit()
    first = house.claimed()
    so_far = answer("one", " two")[:-1]
    with house.database.transaction() as session:
        lease.checkpoint(session, [lease.Progress(first, so_far, 0.25)])
    house.hand_back(first)
    claim = house.claim()
    assert claim is not None
    assert claim.checkpoint == so_far
    assert claim.job.started_at is not None
    assert claim.job.first_token_at is not None
    with house.database.transaction() as session:
        run = session.get_one(JobRun, (first.job_id, first.fence))
    assert (claim.job.first_token_at - run.started_at).total_seconds() == pytest.approx(0.25)


def test_only_crashes_alone_count_and_the_third_ends_the_job(house: House) -> None:
    job_id = house.submit()
    for outcome in (RunOutcome.CRASHED, RunOutcome.HANDED_BACK, RunOutcome.LEASE_LOST):
        assert house.hand_back(house.claimed(), outcome).state == "queued"
    assert house.hand_back(house.claimed(), RunOutcome.CRASHED_ALONE).own_crashes == 1
    assert house.hand_back(house.claimed(), RunOutcome.CRASHED_ALONE).own_crashes == 2
    held = house.claimed()
    with house.database.transaction() as session:
        lease.checkpoint(session, [lease.Progress(held, answer("half")[:-1], 0.1)])
    house.hand_back(held, RunOutcome.CRASHED_ALONE)
    job = house.job(job_id)
    assert (job.state, job.own_crashes) == ("failed", 3)
    assert job.error is not None
    assert job.error["code"] == "engine_crashed"
    assert job.output is not None
    assert job.output["choices"][0]["text"] == "half"


def test_a_rewind_is_an_event_of_its_own(house: House) -> None:
    job_id = house.submit()
    held = house.claimed()
    with house.database.transaction() as session:
        lease.note_rewind(session, held, 7)
    with house.database.transaction() as session:
        last = events_after(session, job_id, 2)
    assert [(event.type, event.data) for event in last] == [("output.rewound", {"position": 7})]
    with house.database.transaction() as session, pytest.raises(LeaseLost):
        lease.note_rewind(session, lease.Held(job_id, held.fence + 1), 7)


def test_events_of_a_job_have_no_gap(house: House) -> None:
    job_id = house.submit()
    for _ in range(5):
        house.hand_back(house.claimed())
    house.finish(house.claimed(), answer("done"))
    with house.database.transaction() as session:
        numbers = [event.number for event in events_after(session, job_id, 0)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert session.scalar(select(func.max(JobRun.fence))) == 6


def test_a_claim_tells_the_tenants_weight_and_the_time_that_is_left(house: House) -> None:
    with house.database.transaction() as session:
        session.get_one(Tenant, house.tenant.id).weight = 2.5
    house.submit(deadline=(utc_now() + timedelta(seconds=60)).isoformat())
    claim = house.claim()
    assert claim is not None
    assert claim.weight == 2.5
    assert claim.seconds_left is not None
    assert 50 < claim.seconds_left <= 60
    house.submit()
    other = house.claim()
    assert other is not None
    assert other.seconds_left is None


def test_tokens_of_candidates_that_were_not_told_are_used_all_the_same(house: House) -> None:
    house.submit()
    held = house.claimed()
    with house.database.transaction() as session:
        entries = [JournalEntry(0, 0, 5, "x", None, held.fence), JournalEntry(0, 1, None, "", None, held.fence, "stop")]
        result = lease.Finish(JobState.SUCCEEDED, entries, prompt_tokens=2, untold_tokens=7)
        assert lease.finish(session, held, result).output_tokens == 8
        assert session.scalars(select(UsageEntry.output_tokens)).one() == 8


def test_a_budget_is_a_positive_number_of_tokens(house: House) -> None:
    job_id = house.submit()
    with pytest.raises(IntegrityError, match="ck_job_token_budget"), house.database.transaction() as session:
        session.get_one(Job, job_id).token_budget = 0
