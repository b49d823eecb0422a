"""PostgreSQL and Redis go away and come back: nothing is lost, and nobody is blamed for it.

Shown elsewhere: that a worker waits out shorter outages and that a worker and Redis may be lost at once
(`tests/worker/test_lifecycle.py`); what the web process answers meanwhile (`tests/platform/api/test_outages.py`); that
housekeepers judge silence, not errors (`tests/platform/jobs/test_silence.py`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acceptance.promises.house import LEASE_SECONDS, SHORT, House, assert_whole, body_of
from tests.patience import eventually
from tests.worker.proxy import Proxy

pytestmark = pytest.mark.drill


@contextmanager
def away(proxy: Proxy, *, hanging: bool) -> Iterator[None]:
    """An outage: connections break and none is to be had, or nothing moves on them."""
    proxy.hang() if hanging else proxy.cut()
    try:
        yield
    finally:
        proxy.mend()


@pytest.mark.parametrize("hanging", [False, True], ids=["it is gone", "it hangs"])
def test_an_outage_of_postgresql_longer_than_a_lease_costs_nothing(house: House, hanging: bool) -> None:
    (worker,) = house.staff(1)
    undisturbed = house.finished(house.submit())
    job_id = house.submit()
    with house.reader(job_id) as reader:
        reader.read_tokens(30)
        with away(house.postgresql_proxy, hanging=hanging):
            time.sleep(1.3 * LEASE_SECONDS)
        had = reader.read_to_end()
    job = house.finished(job_id)
    assert (job.runs, job.own_crashes) == (1, 0)
    assert job.output == undisturbed.output
    assert_whole(had, job)
    assert [one.pid for one in house.workers] == [worker.pid]


def test_while_postgresql_is_away_the_answer_is_a_typed_503(house: House) -> None:
    house.staff(1)
    with away(house.postgresql_proxy, hanging=False):
        answer = house.web.post("/v1/jobs", json=body_of())
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "1"
    eventually(lambda: all(house.web.get("/v1/jobs").is_success for _ in range(10)), "all connections anew")
    assert house.web.post("/v1/jobs", json=body_of(params=SHORT)).status_code == 202


def test_what_is_submitted_while_redis_is_down_runs_afterwards(house: House) -> None:
    house.staff(1)
    with away(house.redis_proxy, hanging=False):
        ids = [house.submit(f"Invoice {number}", SHORT) for number in range(10)]
        assert {house.jobs.get(job_id).state for job_id in ids} == {"queued"}
    for job_id in ids:
        assert house.finished(job_id).runs == 1
    eventually(lambda: house.web.get("/readyz").json()["status"] == "ready", "readiness")
