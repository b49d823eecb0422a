"""No two transactions that deal with several jobs wait for each other: each of these would have, in another order."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.fairness.claimable import let_claim_again
from penstock.fairness.counters import wake
from penstock.jobs import lease
from penstock.jobs.locks import lock_budgets, lock_queue
from penstock.jobs.models import Job
from penstock.jobs.reaper import expire_waiting, reap
from penstock.jobs.states import JobState
from penstock.registry.models import Deployment
from penstock.usage.budgets import set_budget
from penstock.usage.models import TenantBudget
from penstock.usage.prices import NewPrice, set_price
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, make_worker, submit_job

PATIENCE_SECONDS = 30
Step = Callable[[Session], object]
_WAITING = text(
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND "
    "(database = (SELECT oid FROM pg_database WHERE datname = current_database()) OR locktype = 'transactionid')"
)


@dataclass(frozen=True)
class House:
    """Two models, priced in two currencies, and a tenant with a budget in each. The dearer letter comes first."""

    database: Database
    tenant: Tenant
    dollars: Deployment
    euros: Deployment

    def submit(self, session: Session, model: str, **changes: Any) -> Job:
        return submit_job(session, self.tenant, model=model, params={"max_tokens": 2}, **changes)

    def both(self) -> list[str]:
        with self.database.transaction() as session:
            return [self.submit(session, model).id for model in ("dollars", "euros")]

    def race(self, first: Step, other: Step, second: Step) -> None:
        """`first` and `second` in one transaction; between them `other`, in another, has begun to wait for a lock."""
        with ThreadPoolExecutor(1) as pool, self.database.transaction() as session:
            first(session)
            theirs = pool.submit(self._alone, other)
            self._until_one_waits(theirs)
            second(session)
        theirs.result()

    def _alone(self, step: Step) -> None:
        with self.database.transaction() as session:
            step(session)

    def _until_one_waits(self, theirs: Future[None]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and not theirs.done():
            with self.database.transaction() as session:
                if session.scalar(_WAITING):
                    return
        raise AssertionError("nobody waits for a lock")


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        tenant = make_tenant(session)
        deployments = [make_deployment(session, name) for name in ("dollars", "euros")]
        for name, currency in (("dollars", "USD"), ("euros", "EUR")):
            price = NewPrice(name, currency, Decimal(1), Decimal(1), Decimal(1), Decimal(0))
            set_price(session, price, created_by="a test")
            set_budget(session, tenant.id, currency, Decimal(100))
    return House(database, tenant, *deployments)


def spend(session: Session, house: House, currency: str) -> None:
    """As a submit or the end of a job does."""
    mine = TenantBudget.tenant_id == house.tenant.id
    session.execute(
        update(TenantBudget).where(mine, TenantBudget.currency == currency).values(spent=TenantBudget.spent)
    )


def lose_both(house: House) -> None:
    """Both jobs run, are to be cancelled, and their worker has fallen silent."""
    with house.database.transaction() as session:
        for deployment in (house.dollars, house.euros):
            worker = make_worker(session, session.merge(deployment, load=False))
            assert lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=30)
        session.execute(
            update(Job).values(cancel_requested_at=func.now(), lease_expires_at=text("now() - interval '1 s'"))
        )


def make_late(house: House) -> None:
    with house.database.transaction() as session:
        session.execute(update(Job).values(deadline=text("now() - interval '1 s'")))


@pytest.mark.parametrize(
    ("prepare", "act"),
    [
        (make_late, lambda session: expire_waiting(session)),
        (lose_both, lambda session: reap(session, lambda held: [], max_own_crashes=3)),
    ],
    ids=["late ones", "lost ones"],
)
def test_who_ends_jobs_of_two_currencies_locks_budgets_in_their_order(
    house: House, prepare: Callable[[House], None], act: Callable[[Session], object]
) -> None:
    ids = house.both()
    prepare(house)
    house.race(lambda mine: spend(mine, house, "EUR"), act, lambda mine: spend(mine, house, "USD"))
    with house.database.transaction() as session:
        assert {session.get_one(Job, job_id).state for job_id in ids} <= {"expired", "cancelled"}
        assert session.scalar(select(func.sum(TenantBudget.reserved))) == 0


def test_first_counters_on_two_deployments_are_made_by_one_at_a_time(house: House) -> None:
    """Who lets a tenant's jobs go begins with the first deployment, a batch with that of its first line."""
    ids = house.both()
    with house.database.transaction() as session:
        session.execute(text("DELETE FROM fair_share"))

    def begin(mine: Session) -> None:
        lock_queue(mine, house.tenant.id)
        wake(mine, house.euros.id, house.tenant.id, besides=ids)

    def go_on(mine: Session) -> None:
        wake(mine, house.dollars.id, house.tenant.id, besides=ids)

    house.race(begin, lambda other: let_claim_again(other, house.tenant.id), go_on)
    with house.database.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM fair_share")) == 2


def test_a_counter_that_is_being_charged_is_not_waited_for(house: House) -> None:
    with house.database.transaction() as session:
        wake(session, house.dollars.id, house.tenant.id, besides=[])
    with house.database.transaction() as session, house.database.transaction() as other:
        session.execute(text("UPDATE fair_share SET charged = charged + 1"))
        other.execute(text("SET LOCAL lock_timeout = '1ms'"))  # who waits raises
        wake(other, house.dollars.id, house.tenant.id, besides=[])
    with house.database.transaction() as session:
        assert session.scalars(text("SELECT charged FROM fair_share")).all() == [1]


def test_several_submits_near_the_queues_limit_wait_for_no_single_one(house: House) -> None:
    """The single one takes the queue and then the budget; several have both before the first."""

    def begin(mine: Session) -> None:
        lock_queue(mine, house.tenant.id)
        lock_budgets(mine, [house.tenant.id])
        house.submit(mine, "dollars", max_queued_jobs=1000)

    def near(mine: Session) -> None:
        house.submit(mine, "dollars", max_queued_jobs=100)

    house.race(begin, near, near)
    with house.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 3


def lock_job(session: Session, job_id: str) -> None:
    """As a cancel of it does."""
    session.execute(update(Job).where(Job.id == job_id).values(cancel_requested_at=func.now()))


@pytest.mark.parametrize(
    "act",
    [
        lambda session, held: lease.renew(session, worker_id="wrk_a", held=held, lease_seconds=30),
        lambda session, held: lease.finish_all(
            session, [(each, lease.Finish(JobState.SUCCEEDED, [], prompt_tokens=2)) for each in held]
        ),
    ],
    ids=["who renews", "who ends them"],
)
def test_several_jobs_are_locked_in_the_order_of_their_ids(
    house: House, act: Callable[[Session, list[lease.Held]], object]
) -> None:
    ids = sorted(house.both())
    held = [lease.Held(job_id, 1) for job_id in reversed(ids)]
    with house.database.transaction() as session:
        for deployment in (house.dollars, house.euros):
            assert lease.claim(session, worker_id="wrk_a", deployment_id=deployment.id, lease_seconds=30)
    with house.database.transaction() as session:
        session.execute(update(Job).where(Job.id == ids[0]).values(priority=1))  # so that it lies behind the other
    house.race(
        lambda mine: lock_job(mine, ids[0]), lambda session: act(session, held), lambda mine: lock_job(mine, ids[1])
    )
