"""Every write of a worker to jobs, runs and journals carries its fence.

A real worker takes a job to each of its ends, and its statements are written down as PostgreSQL gets them
(`recorder/sitecustomize.py`). That a stale fence changes nothing is shown in `tests/platform/jobs/test_lease.py`, and
that a frozen worker writes nothing in `test_frozen.py`.
"""

import os
import re
import signal
from typing import Any, Final

import pytest

from tests.acceptance.promises.house import ENDLESS, House
from tests.patience import eventually

pytestmark = pytest.mark.drill
HELD_TABLES: Final = ("job", "job_run", "job_journal")
WRITE: Final = re.compile(r"\b(INSERT INTO|(?<!FOR )(?<!DO )UPDATE|DELETE FROM) (\w+)")
CLAIM: Final = ", fence=(job.fence + "
CHARGE: Final = "WITH due AS"
"""A claim raises the fence of a row that it has locked; a charge adds to a total whose row its transaction holds
under the fence (`penstock.fairness.counters.charge`)."""


def write_of(statement: str) -> list[tuple[str, str]]:
    """What is written where: (verb, table) for each."""
    return [(verb.split()[0], table) for verb, table in WRITE.findall(statement)]


def is_fenced(verb: str, table: str, statement: str) -> bool:
    if verb == "INSERT" and table != "job_journal":
        return "fence" in statement
    conditions = statement.rpartition(" WHERE ")[2]
    return re.search(rf"\b{table}\.fence (=|<=) ", conditions) is not None


def lives(house: House) -> None:
    """A job to each of its ends, and each way back into the queue."""
    (worker,) = house.staff(1, max_own_crashes=2, worker_drain_seconds=0)
    assert house.finished(house.submit(params=ENDLESS)).runs == 1
    cancelled = house.submit(params=ENDLESS)
    house.in_flight(cancelled)
    assert house.web.post(f"/v1/jobs/{cancelled}/cancel").status_code == 202
    assert house.jobs.finished(cancelled).state == "cancelled"
    poison = house.submit(params=ENDLESS)
    for run in (1, 2):
        eventually(lambda run=run: house.jobs.get(poison).runs == run and tokens_of(house, poison, run), f"run {run}")  # type: ignore[misc]
        for engine in worker.children:
            os.kill(engine, signal.SIGKILL)
    assert house.jobs.finished(poison).state == "failed"
    handed_back = house.submit(params=ENDLESS)
    house.in_flight(handed_back)
    house.staff(0)
    assert house.jobs.get(handed_back).state == "queued"


def tokens_of(house: House, job_id: str, fence: int) -> bool:
    return any(entry.fence == fence for entry in house.journal(job_id))


def test_each_statement_that_a_worker_writes_with_carries_the_fence(house: House) -> None:
    house.statements.write_text("")
    lives(house)
    lines = [line.split("\t", 1) for line in house.statements.read_text().splitlines()]
    own = {statement for thread, statement in lines if thread != "housekeeping"}
    writes = [(*write, statement) for statement in own for write in write_of(statement)]
    held: list[tuple[Any, ...]] = [write for write in writes if write[1] in HELD_TABLES]
    unfenced = [
        statement
        for verb, table, statement in held
        if not is_fenced(verb, table, statement) and CLAIM not in statement and not statement.startswith(CHARGE)
    ]
    assert unfenced == []
    assert {(verb, table) for verb, table, _ in held} == {
        ("UPDATE", "job"),
        ("INSERT", "job_run"),
        ("UPDATE", "job_run"),
        ("INSERT", "job_journal"),
    }
    assert sum(CLAIM in statement for statement in own) == 1
    assert sum(statement.startswith(CHARGE) for statement in own) == 1
    assert {table for _, table, _ in writes} - set(HELD_TABLES) <= {
        "event", "fair_share", "outbox_message", "usage_entry", "tenant_budget", "webhook_delivery", "dead_letter",
        "worker", "hosting", "deployment",
    }  # fmt: skip
