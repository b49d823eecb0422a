"""Whose turn it is: shares of tenants follow their weights, whatever they queue and however their workers die."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.errors import LeaseLost
from penstock.fairness.models import FairShare
from penstock.fairness.prefixes import fingerprint
from penstock.fairness.turns import NEXT
from penstock.jobs import lease
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job
from penstock.jobs.reaper import reap
from penstock.jobs.states import JobClass, JobState, RunOutcome
from penstock.outbox.relay import count_waiting
from penstock.registry.models import Deployment, Worker
from penstock.usage.spent import Spent
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, make_worker, submit_job


def tokens(count: int, *, fence: int = 1) -> list[JournalEntry]:
    return [JournalEntry(0, index, index, "x", None, fence) for index in range(count)]


@dataclass(frozen=True)
class House:
    """A deployment, a worker, and the tenants that want it."""

    database: Database
    deployment: Deployment
    worker: Worker

    def tenant(self, weight: float = 1.0) -> Tenant:
        with self.database.transaction() as session:
            tenant = make_tenant(session)
            tenant.weight = weight
            return tenant

    def submit(self, tenant: Tenant, *, prompt: int = 10, job_class: str = "interactive", **body: Any) -> str:
        """Queue a job with a prompt of so many tokens."""
        given = {"input": {"token_ids": [7] * prompt}, "class": job_class} | body
        with self.database.transaction() as session:
            return submit_job(session, tenant, **given).id

    def claim(self, recent_prefixes: Sequence[int] = ()) -> lease.Claim | None:
        with self.database.transaction() as session:
            return lease.claim(
                session,
                worker_id=self.worker.id,
                deployment_id=self.deployment.id,
                lease_seconds=30,
                recent_prefixes=recent_prefixes,
            )

    def claimed(self) -> lease.Claim:
        claim = self.claim()
        assert claim is not None
        return claim

    def checkpoint(self, claim: lease.Claim, generated: int, spent: Spent | None = None) -> None:
        with self.database.transaction() as session:
            lease.checkpoint(session, [lease.Progress(held(claim), tokens(generated), 0.1, spent)])

    def finish(self, claim: lease.Claim, generated: int, *, cached: int = 0) -> None:
        with self.database.transaction() as session:
            prompt = claim.job.prompt_tokens or 0
            result = lease.Finish(JobState.SUCCEEDED, tokens(generated), prompt, cached_tokens=cached)
            lease.finish(session, held(claim), result)

    def lose(self, claim: lease.Claim) -> None:
        with self.database.transaction() as session:
            lease.hand_back(session, held(claim), RunOutcome.LEASE_LOST, "silent", max_own_crashes=3)

    def charged(self, tenant: Tenant) -> float:
        with self.database.transaction() as session:
            return session.get_one(FairShare, (tenant.id, self.deployment.id)).charged

    def serve(self, rounds: int, generated: int = 10) -> Counter[str]:
        """Claim and finish so many jobs, one after the other. Returns how many each tenant had."""
        served: Counter[str] = Counter()
        for _ in range(rounds):
            claim = self.claimed()
            self.finish(claim, generated)
            served[claim.job.tenant_id] += 1
        return served


def held(claim: lease.Claim) -> lease.Held:
    return lease.Held(claim.job.id, claim.fence)


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        deployment = make_deployment(session)
        return House(database, deployment, make_worker(session, deployment))


# The order


def test_a_flood_delays_nobody_else(house: House) -> None:
    flooding, modest = house.tenant(), house.tenant()
    for _ in range(30):
        house.submit(flooding)
    house.serve(4)
    wanted = [house.submit(modest) for _ in range(3)]
    order = [house.claimed().job.id for _ in range(6)]
    assert set(wanted) <= set(order), "three of the next six turns are the modest tenant's"


def test_shares_follow_the_weights(house: House) -> None:
    heavy, light = house.tenant(weight=3.0), house.tenant(weight=1.0)
    for _ in range(24):
        house.submit(heavy)
        house.submit(light)
    served = house.serve(20)
    assert abs(served[heavy.id] - 15) <= 1
    assert abs(served[light.id] - 5) <= 1


def test_who_sleeps_saves_nothing_up(house: House) -> None:
    busy, sleeper = house.tenant(), house.tenant()
    house.submit(sleeper)
    for _ in range(30):
        house.submit(busy)
    house.serve(16)
    for _ in range(12):
        house.submit(sleeper)
    served = house.serve(8)
    assert served[sleeper.id] in (4, 5), "it shares from its waking on, and gets nothing for the time before"


def test_who_comes_first_to_an_idle_house_owes_what_the_last_one_had(house: House) -> None:
    first, second = house.tenant(), house.tenant()
    house.submit(first)
    house.serve(1)
    house.submit(second)
    assert house.charged(second) == house.charged(first) == 30.0


def test_slots_that_are_free_at_once_are_shared_before_anything_is_charged(house: House) -> None:
    one, other = house.tenant(), house.tenant()
    for tenant in (one, one, one, one, other, other, other, other):
        house.submit(tenant)
    taken = Counter(house.claimed().job.tenant_id for _ in range(4))
    assert taken == {one.id: 2, other.id: 2}


def test_a_lower_class_goes_first_whatever_its_tenant_has_had(house: House) -> None:
    greedy, patient = house.tenant(), house.tenant()
    house.submit(greedy)
    house.serve(1, generated=500)
    batch = house.submit(patient, job_class="batch", priority=100)
    interactive = house.submit(greedy)
    assert [house.claimed().job.id for _ in range(2)] == [interactive, batch]


def test_a_tenants_own_jobs_go_by_priority_then_deadline_then_age(house: House) -> None:
    tenant = house.tenant()
    old, young = house.submit(tenant), house.submit(tenant)
    late = house.submit(tenant, deadline="2099-01-02T00:00:00Z")
    soon = house.submit(tenant, deadline="2099-01-01T00:00:00Z")
    urgent = house.submit(tenant, priority=1)
    assert [house.claimed().job.id for _ in range(5)] == [urgent, soon, late, old, young]


def test_what_is_late_or_held_is_passed_over(house: House) -> None:
    tenant = house.tenant()
    late, paused, good = house.submit(tenant), house.submit(tenant), house.submit(tenant)
    with house.database.transaction() as session:
        session.execute(text("UPDATE job SET deadline = now() WHERE id = :id"), {"id": late})
        session.execute(update(Job).where(Job.id == paused).values(held=True))
        assert count_waiting(session, house.deployment.id, at_most=10) == 2, "nobody rings for what is held"
    assert house.claimed().job.id == good
    assert house.claim() is None


# The worker's cache


def test_of_equally_old_jobs_those_that_begin_alike_go_first(house: House) -> None:
    tenant = house.tenant()
    other = house.submit(tenant, input={"prompt": "something else"})
    alike = house.submit(tenant, input={"prompt": "the same beginning"})
    known = fingerprint(tenant.id, {"prompt": "the same beginning"})
    claim = house.claim([known])
    assert claim is not None
    assert (claim.job.id, claim.job.prefix) == (alike, known)
    assert house.claimed().job.id == other


@pytest.mark.parametrize(
    "change",
    [
        "queued_at = queued_at - interval '10 seconds'",
        "priority = priority + 1",
        "deadline = '2099-01-01'",
    ],
)
def test_what_has_a_better_claim_goes_before_what_begins_alike(house: House, change: str) -> None:
    tenant = house.tenant()
    better = house.submit(tenant, input={"prompt": "something else"})
    house.submit(tenant, input={"prompt": "the same beginning"})
    with house.database.transaction() as session:
        session.execute(text(f"UPDATE job SET {change} WHERE id = :id"), {"id": better})
    claim = house.claim([fingerprint(tenant.id, {"prompt": "the same beginning"})])
    assert claim is not None
    assert claim.job.id == better


def test_another_tenants_turn_comes_before_what_begins_alike(house: House) -> None:
    one, other = house.tenant(), house.tenant()
    house.submit(one)
    house.serve(1)
    for tenant in (one, other):
        house.submit(tenant)
    with house.database.transaction() as session:
        session.execute(update(FairShare).where(FairShare.tenant_id == other.id).values(charged=0))
    claim = house.claim([fingerprint(one.id, {"token_ids": [7] * 10})])
    assert claim is not None
    assert claim.job.tenant_id == other.id


def test_jobs_with_one_deadline_are_equals_too(house: House) -> None:
    tenant, deadline = house.tenant(), "2099-01-01T00:00:00Z"
    house.submit(tenant, input={"prompt": "something else"}, deadline=deadline)
    alike = house.submit(tenant, input={"prompt": "the same beginning"}, deadline=deadline)
    claim = house.claim([fingerprint(tenant.id, {"prompt": "the same beginning"})])
    assert claim is not None
    assert claim.job.id == alike


# Charges


def test_tokens_are_charged_while_they_are_generated_and_the_rest_at_the_end(house: House) -> None:
    tenant = house.tenant(weight=2.0)
    house.submit(tenant, prompt=10)
    claim = house.claimed()
    house.checkpoint(claim, 5, Spent(cached_tokens=4, computed_tokens=11))
    assert house.charged(tenant) == (10 - 4 + 2 * 5) / 2
    house.checkpoint(claim, 5, Spent(cached_tokens=4, computed_tokens=11))
    assert house.charged(tenant) == (10 - 4 + 2 * 5) / 2
    house.finish(claim, 8, cached=4)
    assert house.charged(tenant) == (10 - 4 + 2 * 8) / 2


def test_a_prompt_is_charged_as_it_is_computed(house: House) -> None:
    tenant = house.tenant()
    house.submit(tenant, prompt=100)
    claim = house.claimed()
    house.checkpoint(claim, 0, Spent(cached_tokens=16, computed_tokens=32))
    assert house.charged(tenant) == 32


def test_candidates_are_charged_before_any_is_told(house: House) -> None:
    tenant = house.tenant()
    house.submit(tenant, prompt=10)
    house.checkpoint(house.claimed(), 0, Spent(cached_tokens=4, computed_tokens=56, recomputed_tokens=10))
    assert house.charged(tenant) == 6 + 2 * 40


def test_what_never_reached_the_model_costs_nothing(house: House) -> None:
    tenant = house.tenant()
    house.submit(tenant)
    house.finish(house.claimed(), 0)
    assert house.charged(tenant) == 0


def test_a_lost_leases_tokens_are_charged_once(house: House) -> None:
    tenant = house.tenant()
    house.submit(tenant, prompt=10)
    first = house.claimed()
    house.checkpoint(first, 6)
    house.lose(first)
    assert house.charged(tenant) == 10 + 2 * 6

    second = house.claimed()
    house.checkpoint(first, 9)
    with pytest.raises(LeaseLost):
        house.finish(first, 9)
    assert house.charged(tenant) == 10 + 2 * 6, "a holder without a lease charges nothing"
    house.checkpoint(second, 4)
    assert house.charged(tenant) == 10 + 2 * 6, "what is generated again was charged before"
    house.finish(second, 9)
    assert house.charged(tenant) == 10 + 2 * 9


def test_what_the_reaper_ends_is_charged(house: House) -> None:
    tenant = house.tenant()
    house.submit(tenant, prompt=10)
    claim = house.claimed()
    house.checkpoint(claim, 3, Spent(cached_tokens=2, computed_tokens=11))
    with house.database.transaction() as session:
        session.execute(text("UPDATE job SET lease_expires_at = now() - interval '1 s', cancel_requested_at = now()"))
        reap(session, lambda _: tokens(5), max_own_crashes=3)
    assert house.charged(tenant) == 10 - 2 + 2 * 5


# Many at once


def test_claimers_at_once_neither_share_a_job_nor_wait_for_each_other(house: House) -> None:
    tenants = [house.tenant() for _ in range(3)]
    expected = {house.submit(tenants[at % 3]) for at in range(12)}
    taken = []
    with Session(house.database.engine) as one, Session(house.database.engine) as other:
        for session in (one, other) * 6:  # each in a transaction that stays open: what waits for it fails in 5 s
            claim = lease.claim(session, worker_id="wrk_x", deployment_id=house.deployment.id, lease_seconds=30)
            assert claim is not None
            taken.append(claim.job.id)
    assert sorted(taken) == sorted(expected)


def test_charging_from_all_sides_never_deadlocks(house: House) -> None:
    """Workers that hold jobs of the same tenants, in opposite orders, checkpoint and finish them at the same moment."""
    tenants = [house.tenant() for _ in range(4)]
    for _ in range(6):
        for tenant in tenants:
            house.submit(tenant, prompt=1)
    claims = [house.claimed() for _ in range(24)]
    start = Barrier(3)

    def work(mine: list[lease.Claim], ended: bool) -> None:
        start.wait()
        for generated in range(1, 9):
            with house.database.transaction() as session:
                lease.checkpoint(session, [lease.Progress(held(each), tokens(generated), 0.1) for each in mine])
        if ended:
            for claim in mine:
                house.finish(claim, 10)

    with ThreadPoolExecutor(3) as pool:
        parts = [claims[0::3], claims[1::3][::-1], claims[2::3]]
        for done in [pool.submit(work, part, at != 1) for at, part in enumerate(parts)]:
            done.result()
    by_claim = {claim.job.id: 8 if at % 3 == 1 else 10 for at, claim in enumerate(claims)}
    for tenant in tenants:
        own = [by_claim[claim.job.id] for claim in claims if claim.job.tenant_id == tenant.id]
        assert house.charged(tenant) == sum(1 + 2 * generated for generated in own)


def test_a_claim_reads_a_few_rows_however_many_wait(house: House) -> None:
    tenants = [house.tenant() for _ in range(3)]
    for tenant in tenants:
        house.submit(tenant)
    _multiply_jobs(house.database, 700)
    with house.database.transaction() as session:
        session.execute(text("ANALYZE job, fair_share, tenant"))  # as small as they are: nobody's guess of long ago
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {NEXT}")
        given = {"deployment_id": house.deployment.id, "last_class": JobClass.SHADOW.value}
        plan = session.execute(explain, given).scalar_one()[0]["Plan"]
        waiting = session.scalar(select(func.count()).where(Job.state == "queued"))
    assert waiting == 3 * 701
    assert max(_rows_read(plan)) <= len(tenants) + 1


def _multiply_jobs(database: Database, times: int) -> None:
    """As many copies of each job, queued a little later."""
    with database.transaction() as session:
        columns = [column.name for column in Job.__table__.columns if column.name not in ("id", "queued_at")]
        session.execute(
            text(
                f"INSERT INTO job (id, queued_at, {', '.join(columns)}) "
                f"SELECT id || '_' || nth, queued_at + nth * interval '1 ms', {', '.join(columns)} "
                "FROM job CROSS JOIN generate_series(1, :times) AS nth"
            ),
            {"times": times},
        )


def _rows_read(plan: dict[str, Any]) -> list[float]:
    """What each node of a plan returned or threw away, over all of its loops."""
    own = plan["Actual Rows"] * plan["Actual Loops"] + plan.get("Rows Removed by Filter", 0)
    return [own, *(rows for child in plan.get("Plans", []) for rows in _rows_read(child))]
