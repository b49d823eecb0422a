"""How lines become jobs: several in a transaction, which holds what all of them want before the first."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from penstock.batches.tending import BatchTender
from penstock.db import Database
from penstock.registry.models import Deployment
from penstock.usage.budgets import set_budget
from penstock.usage.models import TenantBudget
from sqlalchemy import select, text

from tests.factories import WordCounter
from tests.platform.batches.conftest import Bench, lines


class Onlooker(WordCounter):
    """Counts words; at each prompt it looks whether others could lock the tenant's queue and budgets now."""

    def __init__(self, database: Database, tenant_id: str) -> None:
        self._database, self._tenant_id = database, tenant_id
        self.free: list[tuple[bool, int]] = []

    def count(self, deployment: Deployment, job_input: dict[str, Any], *others: Any) -> int:
        queue = text("SELECT pg_try_advisory_xact_lock(hashtextextended('queued jobs of ' || :tenant, 0))")
        with self._database.transaction() as session:
            unlocked = session.scalar(queue, {"tenant": self._tenant_id})
            budgets = session.scalars(select(TenantBudget.currency).with_for_update(skip_locked=True)).all()
        self.free.append((bool(unlocked), len(budgets)))
        return super().count(deployment, job_input, *others)


def test_queue_and_budgets_are_locked_before_the_first_line(bench: Bench) -> None:
    database, tenant_id = bench.workshop.database, bench.caller.tenant_id
    with database.transaction() as session:
        set_budget(session, tenant_id, "EUR", Decimal(1))
        set_budget(session, tenant_id, "USD", Decimal(1))
    onlooker = Onlooker(database, tenant_id)
    watched = replace(bench, tender=BatchTender(replace(bench.workshop, prompts=onlooker)))
    watched.run_to_end(watched.make(lines(2)))
    assert onlooker.free == [(False, 0)] * 2
