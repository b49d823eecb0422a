"""A worker that freezes at the worst moments of a claim, and wakes when its job has another holder, writes nothing.

That one which freezes while it generates writes nothing is shown in `tests/worker/test_lifecycle.py`.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from penstock.jobs.journal import JournalEntry
from penstock.jobs.models import Job, JobJournal, JobRun
from sqlalchemy import Connection, inspect, select, text

from tests.acceptance.promises.house import House
from tests.patience import eventually
from tests.worker.conftest import WorkerProcess

pytestmark = pytest.mark.drill
LOCK: Final = 20261121
MOMENTS: Final = {
    "in the middle of the claim": "AFTER INSERT ON job_run",
    "between claim and first write": "CONSTRAINT AFTER INSERT ON job_run DEFERRABLE INITIALLY DEFERRED",
}


@contextmanager
def stopped_at(house: House, moment: str) -> Iterator[Connection]:
    """The first run of a job waits in PostgreSQL at that moment, until this connection has been let go."""
    constraint = "CONSTRAINT" if moment.startswith("CONSTRAINT") else ""
    with house.database.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.execute(
            text(
                f"""
                CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF NEW.fence = 1 THEN PERFORM pg_advisory_xact_lock({LOCK}); END IF;
                    RETURN NULL;
                END $$;
                CREATE {constraint} TRIGGER wait_for_test {moment.removeprefix("CONSTRAINT ")}
                    FOR EACH ROW EXECUTE FUNCTION wait_for_test()
                """
            )
        )
        connection.commit()
        try:
            yield connection
        finally:
            let_go(connection)
            connection.execute(text("DROP TRIGGER wait_for_test ON job_run; DROP FUNCTION wait_for_test()"))
            connection.commit()


def let_go(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_unlock_all()"))
    connection.commit()


def is_waiting(connection: Connection) -> bool:
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND NOT granted")
    found = connection.execute(waiting, {"lock": LOCK}).scalar()
    connection.commit()  # so that nobody takes it for frozen itself
    return bool(found)


def written(house: House, job_id: str) -> tuple[dict[str, Any], ...]:
    """All that is stored of the job."""
    with house.database.transaction() as session:
        rows: list[Any] = [session.get_one(Job, job_id), session.get_one(JobJournal, job_id)]
        rows += session.scalars(select(JobRun).where(JobRun.job_id == job_id).order_by(JobRun.fence))
        return tuple({column.key: getattr(row, column.key) for column in inspect(row).mapper.columns} for row in rows)


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_writes_nothing_and_the_job_runs_once_elsewhere(house: House, moment: str) -> None:
    first, second = house.staff(2)
    params = {"temperature": 0.0, "max_tokens": 40}
    undisturbed = house.finished(house.submit("Invoice of the frozen", params))
    os.kill(second.pid, signal.SIGSTOP)  # so that the first one claims it
    with stopped_at(house, MOMENTS[moment]) as connection:
        job_id = house.submit("Invoice of the frozen", params)
        eventually(lambda: is_waiting(connection), "the claim")
        os.kill(first.pid, signal.SIGSTOP)
        let_go(connection)
        os.kill(second.pid, signal.SIGCONT)
        job = house.finished(job_id)
    before, journal = written(house, job_id), house.journal(job_id)
    assert_ran_elsewhere(house, job, journal, claimed=moment != "in the middle of the claim")
    assert job.output == undisturbed.output

    os.kill(first.pid, signal.SIGCONT)
    eventually(lambda: says(first, "lease.lost" if job.fence == 2 else "what=lease.claim"), "what it says of it")
    os.kill(second.pid, signal.SIGSTOP)
    try:
        assert house.finished(house.submit("Invoice after it", params)).runs == 1, "it serves on"
    finally:
        os.kill(second.pid, signal.SIGCONT)
    assert written(house, job_id) == before
    assert house.journal(job_id) == journal


def assert_ran_elsewhere(house: House, job: Job, journal: list[JournalEntry], *, claimed: bool) -> None:
    runs = house.jobs.runs(job.id)
    assert [run.outcome for run in runs] == (["lease_lost", "finished"] if claimed else ["finished"])
    assert len({run.worker_id for run in runs}) == len(runs)
    assert {entry.fence for entry in journal} == {job.fence} == {len(runs)}
    assert job.output is not None
    assert [entry.token_id for entry in journal] == [*job.output["choices"][0]["token_ids"], None]


def says(worker: WorkerProcess, words: str) -> bool:
    return words in re.sub("\x1b\\[[0-9;]*m", "", worker.log.read_text())
