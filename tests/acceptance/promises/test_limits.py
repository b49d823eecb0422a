"""What is bounded stays so under a flood: connections, budgets, and the cost of cancels.

Shown elsewhere: that budgets are reserved before they are spent and cut at the token (`tests/worker/test_usage.py`,
`tests/platform/usage/test_accounting.py`), and that a flood of cancels of one running job makes one event
(`tests/acceptance/test_bad_input.py`).
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.client import HTTPConnection
from typing import Any, Final

import httpx
import pytest
from penstock.jobs.models import Event, Job
from penstock.usage.budgets import set_budget
from penstock.usage.models import TenantBudget
from penstock.usage.prices import NewPrice, set_price
from sqlalchemy import func, select, text

from tests.acceptance.promises.house import ENDLESS, SHORT, SLOTS, House, body_of
from tests.patience import eventually

pytestmark = pytest.mark.drill
CLIENTS: Final = 200
CONNECTIONS: Final = 8 + 9 + 13
"""Of one web, control and worker process each, as docs/configuration.md says."""
QUEUED: Final = 1000
AGAIN: Final = 200


def all_at_once(house: House, count: int, ask: Callable[[httpx.Client, int], httpx.Response]) -> list[httpx.Response]:
    """The answers to so many requests, each of a client of its own."""
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    with (
        httpx.Client(
            base_url=house.web.base_url, headers=house.web.headers, limits=limits, timeout=60, trust_env=False
        ) as client,
        ThreadPoolExecutor(count) as pool,
    ):
        return list(pool.map(lambda number: ask(client, number), range(count)))


def test_a_flood_takes_no_more_connections_than_are_written_down(house: House) -> None:
    house.staff(1)
    counted = text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'penstock%'")
    most = 0

    def ask(client: httpx.Client, number: int) -> httpx.Response:
        return client.post("/v1/jobs", json=body_of(params=SHORT)) if number % 4 else client.get("/v1/jobs?limit=5")

    with house.database.engine.connect() as own, ThreadPoolExecutor(1) as pool:
        flood = pool.submit(all_at_once, house, CLIENTS, ask)
        while not flood.done():
            most = max(most, own.execute(counted).scalar_one())
            own.rollback()
    told = Counter((answer.status_code, answer.json().get("code")) for answer in flood.result())
    assert told.keys() <= {(202, None), (200, None), (503, "service_unavailable")}
    assert told[(200, None)] > 0
    assert told[(202, None)] > 0
    its = house.settings.database_pool_size  # the web process takes all of its own, and the tests have one too
    assert its < most <= CONNECTIONS + its


def test_what_finds_no_connection_is_refused_with_a_typed_503(house: House) -> None:
    """While the table of jobs is locked whoever has a connection waits for it, and the others for a connection."""
    house.staff(1)
    with house.database.transaction() as session:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        session.execute(text("LOCK TABLE job IN ACCESS EXCLUSIVE MODE"))
        answers = all_at_once(house, 40, lambda client, _: client.get("/v1/jobs"))
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "service_unavailable")}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    assert house.web.get("/v1/jobs").status_code == 200


def test_thirty_two_submitters_at_once_overdraw_no_budget(house: House) -> None:
    """While no job ends exactly as many are accepted as the budget holds; when they have ended nothing is reserved."""
    house.staff(1)
    each = (1 + SHORT["max_tokens"]) * Decimal("0.001")
    body = body_of(params=SHORT, input={"token_ids": [40]})
    with house.database.transaction() as session:
        set_price(session, NewPrice("tiny", "EUR", Decimal(1000), Decimal(1000), Decimal(1000)), created_by="a test")
        set_budget(session, house.tenant_id, "EUR", 5 * each)
    try:
        with house.engines_stopped():
            answers = all_at_once(house, 32, lambda client, _: client.post("/v1/jobs", json=body))
        told = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert told == {(202, None): 5, (402, "budget_exceeded"): 27}
        costs = [Decimal((house.finished(job_id).account or {})["cost"]["amount"]) for job_id in accepted]
        budget = budget_of(house)
        assert (budget.spent, budget.reserved) == (sum(costs, Decimal(0)), Decimal(0))
        assert budget.spent <= budget.amount
    finally:
        with house.database.transaction() as session:
            session.execute(text("DELETE FROM tenant_budget"))
            session.execute(text("DELETE FROM price"))


def budget_of(house: House) -> TenantBudget:
    with house.database.transaction() as session:
        return session.get_one(TenantBudget, (house.tenant_id, "EUR"))


def test_a_flood_of_cancels_ends_every_job_once_and_delays_nobody(house: House) -> None:
    """A thousand waiting jobs, some of them twice, and a running one from all sides."""
    house.staff(1)
    with house.engines_stopped():
        running = [house.submit(params=ENDLESS) for _ in range(SLOTS)]
        eventually(lambda: {house.jobs.get(job_id).state for job_id in running} == {"running"}, "all slots to be taken")
        queued = copies(house, house.submit(params=SHORT), QUEUED)
        twice = [job_id for pair in zip(queued, queued, [running[0]] * AGAIN, strict=False) for job_id in pair]
        wanted = [*twice, *queued[AGAIN:]]
        with ThreadPoolExecutor(16) as pool:
            told = pool.map(lambda first: cancel(house, wanted[first::16]), range(16))
            statuses = Counter(status for each in told for status in each)
    asked = statuses.pop(202)  # as long as the running one had not ended: its worker needs no token for that
    assert 1 <= asked <= AGAIN
    assert statuses == {200: QUEUED, 409: 2 * AGAIN - asked}
    assert house.jobs.finished(running[0]).state == "cancelled"
    for job_id in running[1:]:
        assert house.finished(job_id).output_tokens == ENDLESS["max_tokens"]
    with house.database.transaction() as session:
        ended = select(Event.job_id).where(Event.type == "job.cancelled", Event.job_id.in_([*queued, running[0]]))
        assert Counter(session.scalars(ended)) == dict.fromkeys([*queued, running[0]], 1)
        left = select(func.count()).select_from(Job).where(Job.id.in_(queued), Job.state != "cancelled")
        assert session.scalar(left) == 0


def copies(house: House, job_id: str, count: int) -> list[str]:
    """So many waiting jobs with all that the given one has."""
    with house.database.transaction() as session:
        for table, column in (("job", "id"), ("event", "job_id")):
            row = f"jsonb_populate_record({table}, jsonb_build_object('{column}', {table}.{column} || copy.number))"
            session.execute(
                text(
                    f"INSERT INTO {table} SELECT ({row}).* FROM {table}, generate_series(1, :count) AS copy (number) "
                    f"WHERE {table}.{column} = :id"
                ),
                {"count": count, "id": job_id},
            )
    return [f"{job_id}{number}" for number in range(1, count + 1)]


def cancel(house: House, job_ids: list[str]) -> list[int]:
    """The status of each cancel, asked for over one connection."""
    connection = HTTPConnection("127.0.0.1", house.web.base_url.port or 80, timeout=60)
    statuses = []
    for job_id in job_ids:
        connection.request("POST", f"/v1/jobs/{job_id}/cancel", headers={"Authorization": f"Bearer {house.key}"})
        answer: Any = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    return statuses
