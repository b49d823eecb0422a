"""A bulk operation's step holds what all of its targets want before it acts on the first."""

from dataclasses import replace
from decimal import Decimal

from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.settings import Settings
from penstock.usage.budgets import set_budget
from redis import Redis

from tests.platform.batches.test_expansion import Onlooker
from tests.platform.bulk.conftest import Bench


def test_queue_and_budgets_are_locked_before_the_first_submit(bench: Bench, settings: Settings, redis: Redis) -> None:
    database, tenant_id = bench.workshop.database, bench.caller.tenant_id
    with database.transaction() as session:
        set_budget(session, tenant_id, "EUR", Decimal(1))
        set_budget(session, tenant_id, "USD", Decimal(1))
    for _ in range(2):
        bench.caller.submit()
        bench.worker.claim()
        bench.worker.finish()
    onlooker = Onlooker(database, settings, redis)
    tender = BulkTender(replace(bench.workshop, quotas=onlooker), JOB_WORKS)
    assert replace(bench, tender=tender).run("replay", status="succeeded")["done"] == 2
    assert onlooker.free == [(False, 0)] * 2
