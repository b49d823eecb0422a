"""`penstock jobs`, `workers` and `dead-letters`, against the real application."""

import threading
from collections.abc import Callable, Iterator

import pytest
from penstock import Client
from penstock.auth.models import Tenant
from penstock.auth.services import Scope, create_api_key
from penstock.bulk.tending import BulkTender
from penstock.bulk.work import JOB_WORKS
from penstock.db import Database
from penstock.dead_letters.work import LETTER_WORKS
from penstock.jobs import lease
from penstock.jobs.lease import Finish
from penstock.jobs.models import Job
from penstock.jobs.states import JobState
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import select, update

from tests.platform.api.conftest import Worker
from tests.platform.batches.serving import workshop_of
from tests.platform.cli.conftest import Call


@pytest.fixture
def tended(settings: Settings, database: Database, redis: Redis, connected: Client) -> Iterator[None]:
    """Bulk operations are worked off while the test runs."""
    tender = BulkTender(workshop_of(settings, database, redis), {**JOB_WORKS, **LETTER_WORKS})
    stop = threading.Event()
    thread = threading.Thread(target=tender.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def as_operator(call: Call, url: str, api_key: str, database: Database) -> Call:
    with database.transaction() as session:
        tenant = session.scalars(select(Tenant)).one()
        scopes = (Scope.OPERATOR,)
        _, key = create_api_key(session, tenant_id=tenant.id, name="o", scopes=scopes, environment="test")
    return lambda *arguments: call(*arguments, "--url", url, "--api-key", key)


@pytest.fixture
def fail(connected: Client, worker: Worker) -> Callable[[str], str]:
    """A job that fails by that code."""

    def run(code: str) -> str:
        job_id = connected.jobs.submit(model="tiny", prompt="hello").id
        held = worker.claim()
        error = {"code": code, "message": "it broke"}
        with worker.database.transaction() as session:
            lease.finish(session, held, Finish(JobState.FAILED, [], prompt_tokens=1, error=error))
        return job_id

    return run


@pytest.mark.usefixtures("tended", "worker")
def test_all_jobs_with_a_tag_are_cancelled_and_submitted_again(connected_call: Call, connected: Client) -> None:
    for tag in ("red", "red", "blue"):
        connected.jobs.submit(model="tiny", prompt="hello", tags=[tag])

    cancelled = connected_call("jobs", "cancel", "--tag", "red", "--status", "queued")
    assert cancelled.exit_code == 0, cancelled.output
    operation = connected.bulk.get(cancelled.stdout.strip())
    assert (operation.status, operation.done, operation.filter) == ("completed", 2, {"tag": "red", "status": "queued"})
    assert "2 done, 0 skipped, 0 failed of 2" in cancelled.stderr
    assert len(list(connected.jobs.list(status="queued"))) == 1

    again = connected_call("jobs", "retry", "--tag", "red", "--class", "interactive", "--created-after", "1h")
    assert again.exit_code == 0, again.output
    made = list(connected.jobs.list(status="queued", tag="red", job_class="interactive"))
    assert {job.retry_of for job in made} == {job.id for job in connected.jobs.list(status="cancelled")}
    assert connected_call("list", "--tag", "red", "--status", "cancelled", "--class", "batch").stdout == ""

    one, other = (job.id for job in made)
    named = connected_call("jobs", "cancel", one)
    assert named.exit_code == 0, named.output
    assert connected.bulk.get(named.stdout.strip()).filter == {}
    assert [connected.jobs.get(job_id).status for job_id in (one, other)] == ["cancelled", "queued"]


def test_without_a_filter_nothing_is_begun(connected_call: Call, connected: Client) -> None:
    assert connected_call("jobs", "cancel").exit_code == 2
    assert connected_call("jobs", "cancel", "job_1", "--tag", "red").exit_code == 2
    assert list(connected.bulk.list()) == []


@pytest.mark.usefixtures("tended")
def test_the_exit_status_says_whether_all_was_had(
    connected_call: Call, connected: Client, fail: Callable[[str], str], database: Database
) -> None:
    job_id = fail("broken")
    with database.transaction() as session:
        session.execute(update(Job).values(params={"temperature": -1.0}))
    result = connected_call("jobs", "retry", "--error", "broken")
    assert result.exit_code == 1
    assert f"{job_id}: " in result.stderr


@pytest.mark.usefixtures("tended")
def test_an_operator_sees_workers_and_settles_dead_letters(
    as_operator: Call, connected: Client, worker: Worker, fail: Callable[[str], str]
) -> None:
    jobs = [fail("forward_failed") for _ in range(3)]
    assert as_operator("workers", "list").stdout.split("\t")[:2] == [worker.id, "live"]
    assert as_operator("workers", "drain", worker.id).stdout == f"{worker.id} draining, 0 running\n"
    assert as_operator("dead-letters", "groups").stdout.split("\t")[:3] == ["3", "1", "forward_failed"]
    rows = [line.split("\t") for line in as_operator("dead-letters", "list").stdout.splitlines()]
    assert [row[5] for row in rows] == jobs[::-1]
    assert '"forward_failed"' in as_operator("dead-letters", "show", rows[0][0]).stdout
    assert as_operator("dead-letters", "discard", rows[0][0]).stdout == f"{rows[0][0]} discarded\n"
    assert as_operator("dead-letters", "replay", rows[1][0]).stdout.startswith(f"{rows[1][0]} replayed as job_")
    group = as_operator("dead-letters", "discard", "--reason", "forward_failed")
    assert (group.exit_code, "1 done" in group.stderr) == (0, True)
    assert as_operator("dead-letters", "replay").exit_code == 2
    assert [job.retry_of for job in connected.jobs.list(status="queued")] == [jobs[1]]
