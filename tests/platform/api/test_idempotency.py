"""A submit or a retry that is sent again with its key acts once, whatever happens around it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from celery import Celery
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.idempotency.models import IdempotencyKey
from penstock.idempotency.services import accept_once, keyed_request
from penstock.jobs.housekeeping import Housekeeper
from penstock.jobs.models import Job
from penstock.settings import Settings
from redis import Redis
from sqlalchemy import delete, func, select, text

from tests.factories import submit_job
from tests.platform.api.conftest import BODY, Caller, Worker

pytestmark = pytest.mark.usefixtures("deployment")
THREADS = 16
DAY = 86_400


def jobs_there_are(database: Database) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def age_keys(database: Database, seconds: int) -> None:
    with database.transaction() as session:
        session.execute(text(f"UPDATE idempotency_key SET created_at = created_at - interval '{seconds} seconds'"))


def test_a_replay_is_answered_byte_for_byte_as_the_first(caller: Caller, worker: Worker, database: Database) -> None:
    first = caller.post("/v1/jobs", BODY | {"metadata": {"z": "1", "a": "2"}}, Idempotency_Key="k")
    worker.claim()
    worker.write("hi")
    worker.finish()
    again = caller.post("/v1/jobs", BODY | {"metadata": {"z": "1", "a": "2"}}, Idempotency_Key="k")

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.data == first.data
    assert again.headers["Location"] == first.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert jobs_there_are(database) == 1


def test_the_order_of_members_is_no_other_request(caller: Caller) -> None:
    first = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    again = caller.post("/v1/jobs", dict(reversed(BODY.items())), Idempotency_Key="k")

    assert again.json == first.json


def test_the_order_of_a_schemas_properties_is_one(caller: Caller) -> None:
    def ask(*names: str) -> int:
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        structure = {"response_format": {"type": "json_schema", "schema": schema}}
        status: int = caller.post("/v1/jobs", BODY | {"params": structure}, Idempotency_Key="k").status_code
        return status

    assert (ask("a", "b"), ask("a", "b"), ask("b", "a")) == (202, 202, 422)


@pytest.mark.parametrize("change", [{"priority": 1}, {"input": {"prompt": "other"}}, {"params": {"seed": 0}}])
def test_another_request_with_the_key_is_refused(caller: Caller, database: Database, change: dict[str, object]) -> None:
    first = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    other = caller.post("/v1/jobs", BODY | change, Idempotency_Key="k")

    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert other.json["field"] == "Idempotency-Key"
    assert first.json["id"] in other.json["detail"]
    assert jobs_there_are(database) == 1


def test_keys_are_each_tenants_own(caller: Caller, make_caller: Callable[..., Caller]) -> None:
    first = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    theirs = make_caller().post("/v1/jobs", BODY | {"priority": 5}, Idempotency_Key="k")

    assert theirs.status_code == 202
    assert theirs.json["id"] != first.json["id"]


def test_a_key_may_stand_in_quotes(caller: Caller) -> None:
    bare = caller.post("/v1/jobs", BODY, Idempotency_Key='8e03\\978e "x')
    quoted = caller.post("/v1/jobs", BODY, Idempotency_Key='"8e03\\\\978e \\"x"')

    assert quoted.json["id"] == bare.json["id"]


@pytest.mark.parametrize("key", ["", " ", '""', '"open', '"a"b"', "a\tb", "ä", "x" * 256, '"' + "x" * 256 + '"'])
def test_what_is_no_key_is_refused(caller: Caller, database: Database, key: str) -> None:
    answer = caller.post("/v1/jobs", BODY, Idempotency_Key=key)

    assert (answer.status_code, answer.json["field"]) == (422, "Idempotency-Key")
    assert jobs_there_are(database) == 0


def test_a_refused_request_leaves_its_key_free(caller: Caller, database: Database) -> None:
    assert caller.post("/v1/jobs", BODY | {"model": "absent"}, Idempotency_Key="k").status_code == 404
    assert caller.post("/v1/jobs", BODY, Idempotency_Key="k").status_code == 202
    assert jobs_there_are(database) == 1


def test_of_many_at_once_one_makes_the_job(caller: Caller, database: Database) -> None:
    together = Barrier(THREADS)

    def send(_: int) -> tuple[int, str, str]:
        together.wait()
        while (answer := caller.post("/v1/jobs", BODY, Idempotency_Key="k")).status_code == 409:
            assert answer.json["code"] == "idempotency_key_in_use"
            assert answer.headers["Retry-After"] == "1"
        return answer.status_code, answer.text, answer.headers.get("Idempotent-Replayed", "made")

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(send, range(THREADS)))

    assert len({(status, body) for status, body, _ in answers}) == 1
    assert answers[0][0] == 202
    assert sorted(how for _, _, how in answers) == ["made", *["true"] * (THREADS - 1)]
    assert jobs_there_are(database) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_duplicate_is_turned_away_while_the_first_is_handled(caller: Caller, database: Database, fails: bool) -> None:
    class Interrupted(Exception):
        pass

    def handle() -> None:
        with database.transaction() as session:
            asked = keyed_request(caller.tenant_id, "k", lambda: ["submit", BODY])
            owner = session.get_one(Tenant, caller.tenant_id)
            accept_once(session, asked, lambda: submit_job(session, owner, **BODY), keep_seconds=DAY)
            during = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
            assert (during.status_code, during.json["code"]) == (409, "idempotency_key_in_use")
            if fails:
                raise Interrupted

    if fails:
        with pytest.raises(Interrupted):
            handle()
    else:
        handle()
    after = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    assert after.status_code == 202
    assert ("Idempotent-Replayed" in after.headers) is not fails
    assert jobs_there_are(database) == 1


def test_a_key_is_forgotten_after_its_time(caller: Caller, database: Database) -> None:
    first = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    age_keys(database, DAY - 60)
    assert caller.post("/v1/jobs", BODY, Idempotency_Key="k").json == first.json
    age_keys(database, 120)
    anew = caller.post("/v1/jobs", BODY | {"priority": 3}, Idempotency_Key="k")

    assert anew.status_code == 202
    assert anew.json["id"] != first.json["id"]


def test_housekeeping_deletes_old_keys_and_leaves_young_ones(
    caller: Caller, database: Database, redis: Redis, celery_app: Celery, settings: Settings
) -> None:
    caller.post("/v1/jobs", BODY, Idempotency_Key="old")
    age_keys(database, DAY + 1)
    caller.post("/v1/jobs", BODY, Idempotency_Key="young")
    Housekeeper(database, redis, celery_app, settings).sweep()
    with database.transaction() as session:
        assert list(session.scalars(select(IdempotencyKey.key))) == ["young"]


def test_a_key_goes_with_its_job(caller: Caller, database: Database) -> None:
    caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    with database.transaction() as session:
        session.execute(delete(Job))

    assert caller.post("/v1/jobs", BODY | {"priority": 1}, Idempotency_Key="k").status_code == 202


def test_a_replay_that_waits_gets_the_finished_job(caller: Caller, worker: Worker) -> None:
    first = caller.post("/v1/jobs", BODY, Idempotency_Key="k")
    worker.claim()
    worker.finish()
    again = caller.post("/v1/jobs", BODY, Idempotency_Key="k", Prefer="wait=5")

    assert (again.status_code, again.json["id"], again.json["status"]) == (200, first.json["id"], "succeeded")
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_retry_that_is_sent_again_makes_one_job(caller: Caller, worker: Worker, database: Database) -> None:
    job_id = caller.submit()
    worker.claim()
    worker.finish()
    path = f"/v1/jobs/{job_id}/retry"
    first = caller.post(path, Idempotency_Key="k")
    again = caller.post(path, Idempotency_Key="k")

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.data == first.data
    assert first.json["retry_of"] == job_id
    assert caller.post("/v1/jobs", BODY, Idempotency_Key="k").json["code"] == "idempotency_key_reused"
    assert jobs_there_are(database) == 2
