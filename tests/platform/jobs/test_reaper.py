"""Jobs come back from holders that fell silent, and late ones end, with what they had."""

from collections.abc import Sequence

import pytest
from penstock.broker import make_celery
from penstock.db import Database
from penstock.jobs import lease, services
from penstock.jobs.housekeeping import Housekeeper
from penstock.jobs.journal import Append, AppendResult, Journal, JournalEntry
from penstock.jobs.models import Job, JobRun
from penstock.jobs.reaper import expire_waiting, reap
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, make_worker, submit_job

HALF = [JournalEntry(0, 0, 7, "half", None, 1)]


def run_and_fall_silent(session: Session, **body: object) -> lease.Held:
    """A job whose holder's lease has run out."""
    deployment = make_deployment(session)
    tenant = make_tenant(session)
    submit_job(session, tenant, **body)
    worker = make_worker(session, deployment)
    claim = lease.claim(session, worker_id=worker.id, deployment_id=deployment.id, lease_seconds=30)
    assert claim is not None
    session.execute(text("UPDATE job SET lease_expires_at = clock_timestamp() - interval '1 second'"))
    return lease.Held(claim.job.id, claim.fence)


def nothing(held: lease.Held) -> Sequence[JournalEntry]:
    return []


def half(held: lease.Held) -> Sequence[JournalEntry]:
    return HALF


def test_a_silent_holder_loses_its_job_and_the_reason_is_kept(database: Database) -> None:
    with database.transaction() as session:
        held = run_and_fall_silent(session)
    with database.transaction() as session:
        assert [job.state for job in reap(session, nothing, max_own_crashes=3)] == ["queued"]
    with database.transaction() as session:
        run = session.get_one(JobRun, (held.job_id, held.fence))
        assert run.outcome == "lease_lost"
        assert run.reason is not None
        assert "fell silent" in run.reason
        assert session.get_one(Job, held.job_id).own_crashes == 0
        assert reap(session, nothing, max_own_crashes=3) == []


def test_a_living_lease_is_left_alone(database: Database) -> None:
    with database.transaction() as session:
        held = run_and_fall_silent(session)
        session.execute(text("UPDATE job SET lease_expires_at = clock_timestamp() + interval '5 seconds'"))
    with database.transaction() as session:
        assert reap(session, nothing, max_own_crashes=3) == []
        assert session.get_one(Job, held.job_id).state == "running"


@pytest.mark.parametrize(("column", "final"), [("cancel_requested_at", "cancelled"), ("deadline", "expired")])
def test_a_dead_holders_job_still_ends_with_what_it_had(database: Database, column: str, final: str) -> None:
    with database.transaction() as session:
        held = run_and_fall_silent(session)
        session.execute(text(f"UPDATE job SET {column} = now() - interval '1 minute'"))
    with database.transaction() as session:
        assert [job.state for job in reap(session, half, max_own_crashes=3)] == [final]
    with database.transaction() as session:
        job = session.get_one(Job, held.job_id)
        assert job.output is not None
        assert job.output["choices"][0]["text"] == "half"
        assert job.output_tokens == 1


def test_waiting_past_the_deadline_expires(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        late = submit_job(session, tenant, deadline="2099-01-01T00:00:00Z").id
        calm = submit_job(session, tenant).id
        session.execute(text("UPDATE job SET deadline = now() - interval '1 second' WHERE id = :id"), {"id": late})
    with database.transaction() as session:
        assert [job.id for job in expire_waiting(session)] == [late]
    with database.transaction() as session:
        assert session.get_one(Job, late).state == "expired"
        assert session.get_one(Job, calm).state == "queued"


def test_the_housekeeper_shuts_the_silent_holder_out_of_the_journal(
    database: Database, redis: Redis, settings: Settings
) -> None:
    with database.transaction() as session:
        held = run_and_fall_silent(session)
        services.cancel(session, session.scalars(select(Job.tenant_id)).one(), held.job_id)
    journal = Journal(redis, "zombie")
    journal.open(held.job_id, held.fence)
    journal.append([Append(held.job_id, held.fence, 0, HALF)])
    patient = settings.model_copy(update={"lease_seconds": 0.5})
    Housekeeper(database, redis, make_celery(settings), patient).sweep()
    with database.transaction() as session:
        job = session.get_one(Job, held.job_id)
        assert job.state == "cancelled"
        assert job.output is not None
        assert job.output["choices"][0]["text"] == "half"
    late = [JournalEntry(0, 1, 8, " dead", None, held.fence)]
    assert journal.append([Append(held.job_id, held.fence, 1, late)]) == [AppendResult.FENCED]
