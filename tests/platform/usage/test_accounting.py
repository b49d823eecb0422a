"""What jobs are charged: once, however often they ran, and never more than was agreed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.errors import BudgetExceeded, ValidationFailed
from penstock.jobs import lease
from penstock.jobs import services as jobs
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job, JobRun
from penstock.jobs.reaper import reap
from penstock.jobs.states import JobState, RunOutcome
from penstock.registry.models import Deployment, Worker
from penstock.usage.budgets import list_budgets, offer, set_budget
from penstock.usage.models import TenantBudget, UsageEntry
from penstock.usage.prices import NewPrice, set_price
from penstock.usage.spent import Spent
from sqlalchemy import text

from tests.factories import make_deployment, make_tenant, make_worker, submit_job

PRICE = NewPrice("tiny", "EUR", Decimal(1000), Decimal(100), Decimal(5000), Decimal(0))
"""A thousandth of a euro for a prompt token, five for an output token: the prompt has two."""
FULL = Spent(cached_tokens=1, computed_tokens=4, device_seconds=2.0, joules=50.0)


@dataclass(frozen=True)
class House:
    """A tenant, a deployment and a worker that hosts it."""

    database: Database
    tenant: Tenant
    deployment: Deployment
    worker: Worker

    def price(self, new: NewPrice = PRICE) -> None:
        with self.database.transaction() as session:
            set_price(session, new, created_by="a test")

    def budget(self, amount: str) -> None:
        with self.database.transaction() as session:
            set_budget(session, self.tenant.id, "EUR", Decimal(amount))

    def standing(self) -> TenantBudget:
        with self.database.transaction() as session:
            return list_budgets(session, self.tenant.id)[0]

    def submit(self, max_tokens: int = 3, **body: object) -> str:
        with self.database.transaction() as session:
            return submit_job(session, self.tenant, params={"max_tokens": max_tokens}, **body).id

    def claim(self) -> lease.Held:
        with self.database.transaction() as session:
            claim = lease.claim(session, worker_id=self.worker.id, deployment_id=self.deployment.id, lease_seconds=30)
        assert claim is not None
        return lease.Held(claim.job.id, claim.fence)

    def checkpoint(self, held: lease.Held, words: int, spent: Spent) -> None:
        with self.database.transaction() as session:
            lease.checkpoint(session, [lease.Progress(held, said(words), 0.1, spent)])

    def hand_back(self, held: lease.Held, outcome: RunOutcome, spent: Spent | None = None) -> None:
        with self.database.transaction() as session:
            lease.hand_back(session, held, outcome, "by a test", max_own_crashes=3, spent=spent)

    def finish(self, held: lease.Held, words: int, spent: Spent | None, state: JobState = JobState.SUCCEEDED) -> Job:
        with self.database.transaction() as session:
            result = lease.Finish(state, said(words), prompt_tokens=2, spent=spent)
            return lease.finish(session, held, result)

    def lose(self, held: lease.Held) -> None:
        """Take the job back, as from a worker that fell silent."""
        with self.database.transaction() as session:
            session.execute(text("UPDATE job SET lease_expires_at = now() - interval '1 s'"))
        with self.database.transaction() as session:
            assert [job.id for job in reap(session, lambda _: [], max_own_crashes=3)] == [held.job_id]

    def entry(self, job_id: str) -> UsageEntry:
        with self.database.transaction() as session:
            return session.get_one(UsageEntry, job_id)


@pytest.fixture
def house(database: Database) -> House:
    with database.transaction() as session:
        deployment = make_deployment(session)
        return House(database, make_tenant(session), deployment, make_worker(session, deployment))


def said(words: int) -> list[JournalEntry]:
    return [JournalEntry(0, index, 100 + index, "word ", None, 1) for index in range(words)]


def test_one_run_is_charged_by_the_price_at_submission(house: House) -> None:
    house.price()
    job_id = house.submit()
    house.price(NewPrice("tiny", "EUR", *[Decimal(1_000_000)] * 4))
    job = house.finish(house.claim(), 3, FULL)
    entry = house.entry(job_id)
    assert entry.cost == Decimal("0.0011") + Decimal("0.015")  # one prompt token computed, one cached, three generated
    assert (entry.currency, entry.joules, entry.device_seconds) == ("EUR", 50.0, 2.0)
    assert job.account is not None
    assert job.account["cost"]["amount"] == "0.016100000"
    assert job.account["energy"] == {"joules": 50.0, "reason": None}


def test_without_a_price_nothing_has_a_cost(house: House) -> None:
    job_id = house.submit()
    job = house.finish(house.claim(), 1, FULL)
    assert house.entry(job_id).cost is None
    assert job.account is not None
    assert job.account["cost"] is None


def test_the_devices_time_has_its_price(house: House) -> None:
    house.price(NewPrice("tiny", "EUR", *[Decimal(0)] * 3, Decimal("0.25")))
    job_id = house.submit()
    house.finish(house.claim(), 1, Spent(computed_tokens=4, device_seconds=2.0, recomputed_seconds=0.5))
    entry = house.entry(job_id)
    assert entry.cost == Decimal("0.375")
    assert (entry.device_seconds, entry.recomputed_seconds) == (1.5, 0.5)


def test_a_versions_own_price_goes_before_that_of_all_and_a_later_one_before_an_earlier(house: House) -> None:
    for version, amount in ((None, 1), ("1", 2), ("2", 3), ("1", 4), (None, 5)):
        house.price(NewPrice("tiny", "EUR", *[Decimal(amount)] * 3, model_version=version))
    with house.database.transaction() as session:
        versions = [Deployment(model_name="tiny", model_version=version) for version in ("1", "2", "3")]
        offers = [offer(session, "ten_nobody", version) for version in versions]
        assert [found.terms.input for found in offers if found.terms is not None] == [4, 3, 5]
        assert offer(session, "ten_nobody", Deployment(model_name="other", model_version="1")).terms is None


def test_a_run_that_lost_its_lease_is_the_platforms_loss(house: House) -> None:
    """Two runs compute six and five tokens; the first is lost after a checkpoint that told four of its six."""
    house.price()
    job_id = house.submit()
    first = house.claim()
    house.checkpoint(first, 2, Spent(cached_tokens=0, computed_tokens=4, device_seconds=4.0, joules=9.0))
    house.lose(first)
    last = Spent(cached_tokens=2, computed_tokens=5, device_seconds=3.0, joules=7.0)
    house.finish(house.claim(), 3, last)
    entry = house.entry(job_id)
    assert (entry.device_seconds, entry.recomputed_seconds) == (3.0, 4.0)
    assert (entry.computed_tokens, entry.recomputed_tokens) == (9, 4)
    assert entry.cached_tokens == 0, "what the second run found was of the first run's making"
    assert entry.joules == 16.0
    assert entry.cost == Decimal("0.002") + Decimal("0.015")


def test_a_lost_run_is_the_platforms_loss_although_the_reaper_ends_its_job(house: House) -> None:
    house.price(NewPrice("tiny", "EUR", *[Decimal(0)] * 3, Decimal("0.25")))
    job_id = house.submit()
    held = house.claim()
    house.checkpoint(held, 2, Spent(cached_tokens=0, computed_tokens=4, device_seconds=4.0))
    with house.database.transaction() as session:
        jobs.cancel(session, house.tenant.id, job_id)
    house.lose(held)
    entry = house.entry(job_id)
    assert (entry.device_seconds, entry.recomputed_seconds, entry.cost) == (0.0, 4.0, 0)
    with house.database.transaction() as session:
        assert session.get_one(JobRun, (job_id, held.fence)).outcome == RunOutcome.LEASE_LOST


def test_a_run_that_was_given_back_is_charged_but_not_what_its_successor_repeats(house: House) -> None:
    job_id = house.submit()
    house.hand_back(house.claim(), RunOutcome.HANDED_BACK, Spent(computed_tokens=4, device_seconds=4.0))
    last = Spent(computed_tokens=6, recomputed_tokens=4, device_seconds=3.0, recomputed_seconds=2.0)
    house.finish(house.claim(), 3, last)
    entry = house.entry(job_id)
    assert (entry.device_seconds, entry.recomputed_seconds) == (5.0, 2.0)
    assert (entry.computed_tokens, entry.recomputed_tokens) == (10, 4)


def test_checkpoints_are_totals_so_repeating_one_counts_nothing_twice(house: House) -> None:
    job_id = house.submit()
    held = house.claim()
    for _ in range(3):
        house.checkpoint(held, 1, Spent(computed_tokens=4, device_seconds=4.0))
    house.finish(held, 1, None)
    assert (house.entry(job_id).computed_tokens, house.entry(job_id).device_seconds) == (4, 4.0)


def test_a_zombies_checkpoint_changes_nothing(house: House) -> None:
    job_id = house.submit()
    zombie = house.claim()
    house.lose(zombie)
    held = house.claim()
    house.checkpoint(zombie, 5, Spent(computed_tokens=400, device_seconds=400.0))
    house.finish(held, 1, FULL)
    assert house.entry(job_id).computed_tokens == 4


def test_energy_that_one_run_did_not_measure_is_not_guessed(house: House) -> None:
    job_id = house.submit()
    unmeasured = Spent(computed_tokens=4, device_seconds=1.0, energy_note="no meter")
    house.hand_back(house.claim(), RunOutcome.HANDED_BACK, unmeasured)
    job = house.finish(house.claim(), 1, FULL)
    assert house.entry(job_id).joules is None
    assert job.account is not None
    assert job.account["energy"] == {"joules": None, "reason": "no meter"}


def test_what_failed_costs_nothing(house: House) -> None:
    house.price()
    house.budget("1")
    job_id = house.submit()
    house.finish(house.claim(), 3, FULL, JobState.FAILED)
    assert house.entry(job_id).cost == 0
    assert (house.standing().reserved, house.standing().spent) == (0, 0)


def test_what_is_cancelled_while_it_waits_is_charged_for_the_run_it_had(house: House) -> None:
    house.price()
    house.budget("1")
    job_id = house.submit()
    held = house.claim()
    house.checkpoint(held, 2, FULL)
    house.hand_back(held, RunOutcome.HANDED_BACK, FULL)
    with house.database.transaction() as session:
        cancelled = jobs.cancel(session, house.tenant.id, job_id)
    assert house.entry(job_id).cost == Decimal("0.0111")
    assert cancelled.account is not None
    assert (house.standing().reserved, house.standing().spent) == (0, Decimal("0.0111"))


def test_a_budget_is_reserved_at_submission_and_settled_at_the_end(house: House) -> None:
    house.price()
    house.budget("0.04")
    first = house.submit()  # two prompt tokens, three generated at most: 0.017
    second = house.submit()
    assert house.standing().reserved == Decimal("0.034")
    with pytest.raises(BudgetExceeded):
        house.submit()
    house.finish(house.claim(), 1, FULL)
    assert (house.standing().reserved, house.standing().spent) == (Decimal("0.017"), Decimal("0.0061"))
    with house.database.transaction() as session:
        jobs.cancel(session, house.tenant.id, second)
    assert house.standing().reserved == 0
    house.submit()
    assert house.entry(first).cost == Decimal("0.0061")


def test_concurrent_submits_cannot_spend_a_budget_twice(house: House) -> None:
    """Eight at a time ask for forty jobs; there is money for five."""
    house.price()
    house.budget("0.09")

    def attempt(_: int) -> bool:
        try:
            house.submit()
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = sum(pool.map(attempt, range(40)))
    assert accepted == 5
    assert house.standing().reserved == Decimal("0.085")


def test_a_job_never_costs_more_than_its_own_budget(house: House) -> None:
    house.price(NewPrice("tiny", "EUR", *[Decimal(0)] * 3, Decimal(1)))
    job_id = house.submit(budget={"amount": "0.5", "currency": "EUR"})
    job = house.finish(house.claim(), 1, Spent(computed_tokens=3, device_seconds=9.0))
    assert house.entry(job_id).cost == Decimal("0.5")
    assert job.terms is not None
    assert job.terms["limit"] == "0.5"


@pytest.mark.parametrize(
    ("prepare", "budget", "field"),
    [
        (lambda _: None, {"amount": "1", "currency": "EUR"}, "budget.amount"),
        (House.price, {"amount": "1", "currency": "USD"}, "budget.currency"),
        (House.price, {"amount": "0.002", "currency": "EUR"}, "budget.amount"),
    ],
    ids=["no price", "another currency", "less than the prompt costs"],
)
def test_a_budget_that_cannot_be_is_refused(
    house: House, prepare: Callable[[House], None], budget: dict[str, str], field: str
) -> None:
    prepare(house)
    with pytest.raises(ValidationFailed) as refused:
        house.submit(budget=budget)
    assert refused.value.field == field


def test_time_that_nothing_bounds_needs_a_budget_of_the_job(house: House) -> None:
    house.price(NewPrice("tiny", "EUR", *[Decimal(1)] * 3, Decimal(1)))
    house.budget("3")
    with pytest.raises(ValidationFailed, match="is needed"):
        house.submit()
    house.submit(budget={"amount": 2, "currency": "EUR"})
    assert house.standing().reserved == 2
    with pytest.raises(BudgetExceeded):
        house.submit(budget={"amount": "1.01", "currency": "EUR"})
