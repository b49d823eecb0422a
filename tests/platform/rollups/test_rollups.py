"""Points of metrics: counted once, whatever happens in between, and read as charts."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.errors import ValidationFailed
from penstock.ids import first_id
from penstock.jobs.models import Job
from penstock.outbox.models import OutboxMessage
from penstock.registry.models import Deployment, Hosting
from penstock.rollups import keeping, writing
from penstock.rollups.asking import ask, step_for
from penstock.rollups.counting import Point, counted
from penstock.rollups.histogram import ERROR, GROWTH, percentile
from penstock.rollups.models import MetricPoint, MetricProgress
from penstock.rollups.reading import Chart, Line, read
from penstock.rollups.series import SERIES, Kind
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, make_worker

NOW = datetime(2030, 5, 17, 12, 34, 56, tzinfo=UTC)
MADE: dict[str, Any] = {
    "model": "tiny", "model_name": "tiny", "model_version": "1", "input": {}, "params": {}, "routing": {}, "seed": 1,
    "prompt_tokens": 10, "cached_tokens": 4, "output_tokens": 6,
}  # fmt: skip
Ended = Callable[..., Job]


@pytest.fixture
def tenant(database: Database) -> Tenant:
    with database.transaction() as session:
        return make_tenant(session)


@pytest.fixture
def deployment(database: Database) -> Deployment:
    with database.transaction() as session:
        return make_deployment(session)


@pytest.fixture
def ended(database: Database, tenant: Tenant, deployment: Deployment) -> Ended:
    """Writes a job down that ended at that moment, after so many seconds."""
    numbers = iter(range(1_000_000))

    def write(at: datetime, seconds: float = 2.0, state: str = "succeeded", **values: Any) -> Job:
        began = at - timedelta(seconds=seconds)
        times = {"created_at": began, "queued_at": began, "started_at": began + timedelta(seconds=seconds / 4)}
        times |= {"first_token_at": began + timedelta(seconds=seconds / 2), "finished_at": at}
        job = Job(
            id=first_id("job", began)[:-8] + f"{next(numbers):08d}",
            tenant_id=tenant.id,
            state=state,
            deployment_id=deployment.id,
            **(MADE | times | values),
        )
        with database.transaction() as session:
            session.add(job)
        return job

    return write


def database_now(database: Database) -> datetime:
    with database.transaction() as session:
        now: datetime = session.scalars(select(func.clock_timestamp())).one()
        return now


def look(database: Database) -> bool:
    with database.transaction() as session:
        return keeping.keep(session)


def catch_up(database: Database) -> None:
    """Look until nothing is left to make final."""
    while look(database):
        pass


def chart(database: Database, *names: str, hours: float = 1, **asked: Any) -> Chart:
    now = database_now(database)
    with database.transaction() as session:
        return read(session, ask(names, now - timedelta(hours=hours), now, **asked))


def line(found: Chart, series: str, statistic: str | None = None, label: str = "") -> Line:
    (only,) = (
        each
        for each in found.lines
        if each.series.name == series and each.label == label and statistic in (None, each.statistic)
    )
    return only


def total(database: Database, series: str, **asked: Any) -> float:
    values = [value for each in chart(database, series, **asked).lines for value in each.values]
    return sum(value for value in values if value is not None)


@pytest.mark.parametrize("seed", range(5))
def test_a_percentile_is_within_its_error(seed: int) -> None:
    values = sorted(Random(seed).lognormvariate(0, 2) for _ in range(500))
    buckets: dict[int, int] = {}
    for value in values:
        number = next(each for each in range(-400, 900) if GROWTH**each <= value < GROWTH ** (each + 1))
        buckets[number] = buckets.get(number, 0) + 1
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        found = percentile(buckets, share)
        true = values[max(-int(-share * len(values) // 1) - 1, 0)]
        assert found == pytest.approx(true, rel=ERROR + 1e-9)
    assert percentile({}, 0.5) is None


def test_what_ended_is_counted_once_however_often_it_is_looked_at(database: Database, ended: Ended) -> None:
    now = database_now(database)
    for back in (0, 3, 20, 50):
        ended(now - timedelta(minutes=back))
    ended(now - timedelta(minutes=20), state="failed", error={"code": "forward_failed", "message": "it broke"})
    catch_up(database)
    for _ in range(3):
        look(database)
    assert total(database, "jobs.finished") == 5
    assert total(database, "jobs.submitted") == 5
    assert total(database, "tokens.output") == 30
    assert total(database, "jobs.failed", by="code") == 1
    by_state = chart(database, "jobs.finished", by="state")
    assert sum(value or 0 for value in line(by_state, "jobs.finished", label="succeeded").values) == 4
    assert sum(value or 0 for value in line(by_state, "jobs.finished", label="failed").values) == 1
    hit_rates = [
        value for value in line(chart(database, "cache.hit_rate"), "cache.hit_rate").values if value is not None
    ]
    assert hit_rates == pytest.approx([0.4] * 4)


def test_a_finish_that_is_committed_late_is_counted_when_its_minute_becomes_final(
    database: Database, ended: Ended
) -> None:
    now = database_now(database)
    ended(now - timedelta(minutes=40))
    catch_up(database)
    late = keeping.FINAL_AFTER + timedelta(minutes=1)
    with database.transaction() as session:  # as if the last look had been a while ago
        session.execute(update(MetricProgress).values(through=MetricProgress.through - late))
    ended(now - late)
    catch_up(database)
    assert total(database, "jobs.finished") == 2


def test_one_of_several_keepers_writes(database: Database, ended: Ended) -> None:
    ended(database_now(database) - timedelta(minutes=1))
    look(database)
    with database.transaction() as first:
        assert keeping.keep(first) is False
        before = first.scalar(select(func.count()).select_from(MetricPoint))
        with database.transaction() as second:
            assert keeping.keep(second) is False
            assert second.scalar(select(func.count()).select_from(MetricPoint)) == before


def test_a_level_is_sampled_once_in_a_look_and_averaged(database: Database, deployment: Deployment) -> None:
    stats = {"pages_total": 100, "pages_in_use": 40, "running": 3, "max_running": 4}
    with database.transaction() as session:
        worker = make_worker(session, deployment)
        session.execute(update(Hosting).where(Hosting.worker_id == worker.id).values(stats=stats))
        session.add(OutboxMessage(topic="t", payload={}))
    look(database)  # the first begins
    with database.transaction() as session:
        session.execute(
            update(MetricProgress).where(MetricProgress.name == "samples").values(through=MetricProgress.since)
        )
        moment = session.scalars(select(MetricProgress.through).where(MetricProgress.name == "samples")).one()
        session.execute(update(MetricProgress).values(through=moment - timedelta(seconds=10)))
    look(database)
    look(database)
    found = chart(database, "workers.live", "outbox.waiting", "kv.use", "batch.occupancy", hours=0.1)
    for series, value in (("workers.live", 1), ("outbox.waiting", 1), ("kv.use", 0.4), ("batch.occupancy", 0.75)):
        told = [each for each in line(found, series).values if each is not None]
        assert told, series
        assert set(told) == {value}, series


def test_hours_are_the_sum_of_their_minutes_and_outlive_them(database: Database, ended: Ended) -> None:
    now = database_now(database)
    old = (now - writing.MINUTES_KEPT - timedelta(hours=5)).replace(minute=30)
    for minute in range(40):
        ended(old + timedelta(minutes=minute), seconds=2.0)
    catch_up(database)
    with database.transaction() as session:
        steps = set(session.scalars(select(MetricPoint.step).where(MetricPoint.series == "jobs.finished")))
    assert steps == {3600}, "minutes past their time are left"
    found = chart(database, "jobs.finished", "ttft.seconds", hours=24 * 4, step=3600)
    assert [value for value in line(found, "jobs.finished").values if value] == [30, 10]
    medians = [value for value in line(found, "ttft.seconds", "p50").values if value is not None]
    assert medians == pytest.approx([1.0, 1.0], rel=ERROR + 1e-9)


def test_what_is_past_its_time_is_deleted(database: Database) -> None:
    now = database_now(database)
    with database.transaction() as session:
        for step, back in ((60, writing.MINUTES_KEPT), (3600, writing.HOURS_KEPT)):
            for more in (timedelta(hours=-1), timedelta(hours=1)):
                session.execute(
                    text("INSERT INTO metric_point VALUES (:step, 'jobs.finished', :at, '{}', 1, 1, 1)"),
                    {"step": step, "at": now - back - more},
                )
        writing.prune(session, list(SERIES), now)
        left = session.execute(select(MetricPoint.step, MetricPoint.at).order_by(MetricPoint.step)).all()
    assert [(row.step, row.at) for row in left] == [
        (60, now - writing.MINUTES_KEPT + timedelta(hours=1)),
        (3600, now - writing.HOURS_KEPT + timedelta(hours=1)),
    ]


def test_nothing_is_known_of_the_time_before_counting_began(database: Database, ended: Ended) -> None:
    assert set(chart(database, "jobs.finished").lines[0].values) == {None}
    ended(database_now(database) - timedelta(minutes=30))
    catch_up(database)
    values = line(chart(database, "jobs.finished"), "jobs.finished").values
    assert values[0] is None
    assert sum(value or 0 for value in values) == 1
    assert values[-1] == 0


def test_jobs_of_a_time_are_found_by_indexes(database: Database, ended: Ended) -> None:
    from penstock.rollups import counting

    ended(NOW)
    span = {"since": NOW, "until": NOW + timedelta(minutes=1)}
    more = {"first_id": first_id("job", NOW), "last_id": first_id("job", NOW), "smallest": 0.1, "log_growth": 0.1}
    with database.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        for statement, sign in (
            (counting._FINISHED, "ix_job_tenant_finished"),
            (counting._SPREADS, "ix_job_tenant_finished"),
            (counting._SUBMITTED, "Index Cond: ((id >= "),  # two indexes have it: of so few rows either is as good
        ):
            plan = session.execute(text(f"EXPLAIN {statement.text}"), span | more).scalars().all()
            assert any(sign in step for step in plan), plan


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"names": ["jobs.none"]}, "series"),
        ({"until": NOW - timedelta(hours=2)}, "to"),
        ({"step": 90}, "step"),
        ({"step": 60, "since": NOW - timedelta(days=2)}, "step"),
        ({"by": "code"}, "by"),
        ({"names": ["workers.live"], "only": {"model": "tiny"}}, "model"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(asked: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"names": ["jobs.finished"], "since": NOW - timedelta(hours=1), "until": NOW} | asked
    with pytest.raises(ValidationFailed) as refused:
        ask(given.pop("names"), given.pop("since"), given.pop("until"), **given)
    assert refused.value.field == field


def test_a_chart_of_minutes_that_are_gone_is_refused(database: Database) -> None:
    with pytest.raises(ValidationFailed, match="whole hours"):
        chart(database, "jobs.finished", hours=24 * 5, step=600)


def test_a_step_is_chosen_that_fits_the_time() -> None:
    lengths = [timedelta(hours=1), timedelta(hours=6), timedelta(days=1), timedelta(days=7), timedelta(days=30)]
    assert [step_for(NOW - length, NOW) for length in lengths] == [60, 300, 900, 7200, 43200]


def test_every_series_can_be_read_and_says_what_it_is(session: Session) -> None:
    for series in SERIES.values():
        assert series.says
        assert (series.of is not None) == (series.kind is Kind.RATIO)
        assert all(name in SERIES for name in series.of or ())
        read(session, ask([series.name], NOW, NOW + timedelta(hours=1)))


def test_every_series_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text().partition("## Kept in PostgreSQL")[2]
    told = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \|[^|]*\| (.*?) \|", page, re.MULTILINE)
    assert told == [
        (each.name, each.kind, ", ".join(f"`{label}`" for label in each.labels)) for each in SERIES.values()
    ]


@pytest.fixture
def session(database: Database) -> Any:
    with database.transaction() as session:
        yield session


def test_points_hold_what_jobs_told(database: Database, ended: Ended) -> None:
    ended(NOW, seconds=4.0)
    with database.transaction() as session:
        points = counted(session, NOW - timedelta(minutes=1), NOW + timedelta(minutes=1))
    found: dict[str, Point] = {point.series: point for point in points}
    assert found["ttft.seconds"].total == pytest.approx(2.0)
    assert found["wait.seconds"].total == pytest.approx(1.0)
    assert found["latency.seconds"].peak == pytest.approx(4.0)
    assert found["tokens.output"].labels == {"model": "tiny", "version": "1", "class": "interactive"}
    assert sum(found["latency.seconds"].buckets.values()) == 1
