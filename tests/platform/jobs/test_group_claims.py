"""Several jobs claimed at once are the same, in the same order, that as many single claims would take."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from penstock.auth.models import Tenant
from penstock.clock import utc_now
from penstock.db import Database
from penstock.fairness.models import FairShare
from penstock.fairness.prefixes import RecentPrefixes
from penstock.jobs import lease
from penstock.jobs.models import Job, JobRun
from penstock.registry.models import Deployment
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, submit_job

WEIGHTS = (1.0, 2.5, 0.4, 1.0)


@dataclass(frozen=True)
class House:
    """A deployment, and tenants of different weights that want it."""

    database: Database
    tenants: list[Tenant]
    deployment: Deployment

    @contextmanager
    def undone(self) -> Iterator[Session]:
        """A transaction of which nothing stays."""
        with Session(self.database.engine) as session:
            yield session
            session.rollback()

    def claims(self, session: Session, most: int, recent: list[int] | None = None) -> list[lease.Claim]:
        return lease.claim_all(
            session,
            worker_id="wrk_a",
            deployment_id=self.deployment.id,
            lease_seconds=60,
            most=most,
            recent_prefixes=recent or [],
        )

    def one_by_one(self, session: Session, most: int, recent: list[int]) -> list[str]:
        noted, taken = RecentPrefixes.of(recent), list[str]()
        while len(taken) < most:
            claim = lease.claim(
                session,
                worker_id="wrk_a",
                deployment_id=self.deployment.id,
                lease_seconds=60,
                recent_prefixes=noted.newest_first(),
            )
            if claim is None:
                break
            noted.note(claim.job.prefix)
            taken.append(claim.job.id)
        return taken


@pytest.fixture(scope="module")
def chance() -> random.Random:
    return random.Random(7)


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        tenants = [make_tenant(session) for _ in WEIGHTS]
        for tenant, weight in zip(tenants, WEIGHTS, strict=True):
            tenant.weight = weight
        return House(database, tenants, make_deployment(session))


def a_queue(session: Session, house: House, chance: random.Random, jobs: int = 60) -> list[int]:
    """Jobs that differ in all that their order depends on; returns prefixes that were served lately."""
    prefixes = [chance.getrandbits(60) for _ in range(6)]
    now = utc_now()
    for tenant in house.tenants:
        session.merge(
            FairShare(tenant_id=tenant.id, deployment_id=house.deployment.id, charged=float(chance.randrange(80)))
        )
    soon = now + timedelta(hours=1)
    for _ in range(jobs):
        session.execute(
            update(Job)
            .where(Job.id == submit_job(session, chance.choice(house.tenants)).id)
            .values(
                job_class=chance.choice([0, 0, 0, 1]),
                priority=chance.choice([0, 0, 0, 5]),
                deadline=chance.choice([None, None, None, soon]),
                queued_at=now - timedelta(seconds=chance.randrange(25)),
                prefix=chance.choice([None, *prefixes, *prefixes]),
                prompt_tokens=chance.randrange(1, 40),
                charged=chance.choice([0, 0, 0, 9]),
            )
        )
    return prefixes[:2]


def test_the_order_is_that_of_single_claims(house: House, chance: random.Random) -> None:
    for most in (2, 7, 20, 70):
        with house.undone() as session:
            recent = a_queue(session, house, chance)
            begun = session.begin_nested()
            expected = house.one_by_one(session, most, recent)
            begun.rollback()
            session.expire_all()
            assert [claim.job.id for claim in house.claims(session, most, recent)] == expected
            assert len(expected) == min(most, 60)


def test_each_claim_has_a_fence_a_run_and_its_checkpoint(house: House) -> None:
    with house.database.transaction() as session:
        ids = [submit_job(session, house.tenants[0]).id for _ in range(3)]
    with house.database.transaction() as session:
        claims = house.claims(session, 8)
    assert [claim.job.id for claim in claims] == ids
    assert [(claim.fence, claim.checkpoint, claim.weight) for claim in claims] == [(1, [], 1.0)] * 3
    with house.database.transaction() as session:
        assert {run.job_id for run in session.scalars(select(JobRun))} == set(ids)
        rows = [session.get_one(Job, job_id) for job_id in ids]
        assert {(row.state, row.lease_holder, row.runs, row.last_event) for row in rows} == {("running", "wrk_a", 1, 2)}
        assert house.claims(session, 8) == []


def test_what_others_are_claiming_is_passed_over(house: House) -> None:
    """Neither waits for the other's rows, nor takes one of them; what is left is found behind them."""
    with house.database.transaction() as session:
        ids = [submit_job(session, house.tenants[0]).id for _ in range(9)]
    with house.undone() as mine, house.undone() as other:
        first = [claim.job.id for claim in house.claims(mine, 5)]
        second = [claim.job.id for claim in house.claims(other, 5)]
    assert first == ids[:5]
    assert second == ids[5:]


def test_a_lane_is_looked_into_again_when_it_is_served_deeper_than_it_was_looked_into(house: House) -> None:
    """One tenant's short prompts all come before the second long one of any other."""
    with house.database.transaction() as session:
        for tenant in house.tenants[1:] * 2:
            submit_job(session, tenant, input={"token_ids": [7] * 200})
        for _ in range(30):
            submit_job(session, house.tenants[0], input={"token_ids": [7]})
    with house.undone() as session:
        expected = house.one_by_one(session, 33, [])
    with house.undone() as session:
        claims = [(claim.job.id, claim.job.tenant_id) for claim in house.claims(session, 33)]
    assert [job_id for job_id, _ in claims] == expected
    assert sum(tenant_id == house.tenants[0].id for _, tenant_id in claims) == 30
