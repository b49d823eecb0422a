"""The transition table in Python and the trigger in PostgreSQL say the same."""

import itertools

import pytest
from penstock.db import Database
from penstock.jobs.states import TRANSITIONS, JobState
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tests.factories import make_deployment, make_tenant, submit_job

PAIRS = [(old, new) for old, new in itertools.product(JobState, JobState) if old is not new]


def _columns(state: JobState) -> str:
    holder = "'w'" if state is JobState.RUNNING else "NULL"
    finished = "now()" if state.final else "NULL"
    return f"state = '{state}', lease_holder = {holder}, finished_at = {finished}"


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_database_allows_exactly_the_table(database: Database, old: JobState, new: JobState) -> None:
    with database.transaction() as session:
        make_deployment(session)
        job_id = submit_job(session, make_tenant(session)).id
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE job DISABLE TRIGGER job_guard_state"))
        connection.execute(text(f"UPDATE job SET {_columns(old)} WHERE id = :id"), {"id": job_id})
        connection.execute(text("ALTER TABLE job ENABLE TRIGGER job_guard_state"))
    move = text(f"UPDATE job SET {_columns(new)} WHERE id = :id")
    if new in TRANSITIONS[old]:
        with database.engine.begin() as connection:
            assert connection.execute(move, {"id": job_id}).rowcount == 1
    else:
        with (
            pytest.raises(IntegrityError, match=f"cannot go from {old} to {new}"),
            database.engine.begin() as connection,
        ):
            connection.execute(move, {"id": job_id})


def test_final_states_are_those_without_a_way_out() -> None:
    assert {state for state in JobState if state.final} == set(JobState) - {JobState.QUEUED, JobState.RUNNING}
