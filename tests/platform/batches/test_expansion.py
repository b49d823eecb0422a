"""How lines become jobs: several in a transaction, which holds what all of them want before the first."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from penstock.auth.services import TenantLimits
from penstock.batches.models import Batch, BatchLine
from penstock.batches.tending import BatchTender
from penstock.db import Database
from penstock.jobs.models import Event, Job
from penstock.outbox.models import OutboxMessage
from penstock.quotas.counters import Counters
from penstock.quotas.gate import QuotaGate
from penstock.registry.models import Deployment
from penstock.settings import Settings
from penstock.usage.budgets import set_budget
from penstock.usage.models import TenantBudget
from redis import Redis
from sqlalchemy import select, text

from tests.factories import WordCounter
from tests.platform.batches.conftest import Bench, lines


class Onlooker(QuotaGate):
    """Counts no tokens; at each line it looks whether others could lock the tenant's queue and budgets now."""

    def __init__(self, database: Database, settings: Settings, redis: Redis) -> None:
        super().__init__(Counters(redis), settings)
        self._database = database
        self.free: list[tuple[bool, int]] = []

    def admit_tokens(self, tenant_id: str, limits: TenantLimits, tokens: int) -> None:
        queue = text("SELECT pg_try_advisory_xact_lock(hashtextextended('queued jobs of ' || :tenant, 0))")
        with self._database.transaction() as session:
            unlocked = session.scalar(queue, {"tenant": tenant_id})
            budgets = session.scalars(select(TenantBudget.currency).with_for_update(skip_locked=True)).all()
        self.free.append((bool(unlocked), len(budgets)))


def test_queue_and_budgets_are_locked_before_the_first_line(bench: Bench, settings: Settings, redis: Redis) -> None:
    database, tenant_id = bench.workshop.database, bench.caller.tenant_id
    with database.transaction() as session:
        set_budget(session, tenant_id, "EUR", Decimal(1))
        set_budget(session, tenant_id, "USD", Decimal(1))
    onlooker = Onlooker(database, settings, redis)
    watched = replace(bench, tender=BatchTender(replace(bench.workshop, quotas=onlooker)))
    watched.run_to_end(watched.make(lines(2)))
    assert onlooker.free == [(False, 0)] * 2


class Watched(WordCounter):
    """Counts words, and notes whether the batch is locked meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.unlocked: list[bool] = []

    def count(self, deployment: Deployment, job_input: dict[str, Any], *others: Any) -> int:
        with self._database.transaction() as session:
            self.unlocked.append(bool(session.scalars(select(Batch.id).with_for_update(skip_locked=True)).all()))
        return super().count(deployment, job_input, *others)


def test_prompts_are_counted_once_each_while_nothing_is_locked(bench: Bench) -> None:
    watched = Watched(bench.workshop.database)
    counting = replace(bench, tender=BatchTender(replace(bench.workshop, prompts=watched)))
    done = counting.run_to_end(counting.make(lines(3)))
    assert done["lines"]["succeeded"] == 3
    assert watched.unlocked == [True] * 3


def test_lines_of_one_turn_are_written_together(bench: Bench) -> None:
    """One statement for all of them, and one doorbell, which says for how many."""
    batch_id = bench.make(lines(3))
    bench.tend()
    with bench.workshop.database.transaction() as session:
        jobs = session.scalars(select(Job).order_by(Job.batch_line)).all()
        bells = session.scalars(select(OutboxMessage.payload).where(OutboxMessage.topic == "doorbell")).all()
        events = session.execute(select(Event.job_id, Event.number, Event.type).order_by(Event.job_id)).all()
        open_lines = session.scalars(select(BatchLine.job_id).order_by(BatchLine.line)).all()
    assert [(job.batch_id, job.batch_line, job.last_event) for job in jobs] == [
        (batch_id, line, 1) for line in (1, 2, 3)
    ]
    assert [payload["jobs"] for payload in bells] == [3]
    assert sorted(events) == sorted((job.id, 1, "job.queued") for job in jobs)
    assert open_lines == [job.id for job in jobs]
