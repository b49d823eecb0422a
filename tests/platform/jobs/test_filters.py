"""Filters of a list of jobs: each finds what it says, and reads little more than a page of however many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from penstock.auth.models import Tenant
from penstock.db import Database
from penstock.ids import first_id
from penstock.jobs import services as jobs
from penstock.jobs.filters import JobFilter, matching_ids
from penstock.jobs.models import Job, JobTag
from penstock.jobs.states import JobClass, JobState
from penstock.registry.models import Deployment
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tests.factories import make_deployment, make_tenant, submit_job

ROWS = 6000
LIMIT = 20
MOST_READ = 400
"""Rows that a page of `LIMIT` jobs may touch, in all tables together: far less than any tenant's share of `ROWS`."""

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_FILL = text(
    """
    INSERT INTO job (id, tenant_id, state, model, input, params, seed, tags, deployment_id, model_name, model_version,
                     routing, api_key_id, job_class, batch_id, batch_line, error, created_at, queued_at, finished_at)
    SELECT id, tenants[1 + n % 2], state, 'tiny', '{}', '{}', 1,
           CASE WHEN n % 300 < 2 THEN ARRAY['rare', 'all'] ELSE ARRAY['all'] END,
           deployments[CASE WHEN n % 300 < 2 THEN 2 ELSE 1 END], 'tiny', CASE WHEN n % 300 < 2 THEN '2' ELSE '1' END,
           '{}', CASE WHEN n % 300 < 2 THEN 'key_rare' ELSE 'key_often' END, n % 2,
           CASE WHEN n % 300 < 2 THEN 'batch_rare' END, CASE WHEN n % 300 < 2 THEN n END,
           CASE WHEN state = 'failed' THEN
               jsonb_build_object('code', CASE WHEN n % 600 < 2 THEN 'rare' ELSE 'often' END, 'message', '') END,
           created_at, created_at, CASE WHEN state NOT IN ('queued') THEN created_at + interval '10 seconds' END
    FROM (SELECT n, :begin + n * interval '1 minute' AS created_at,
                 CASE WHEN n % 300 < 2 THEN 'failed' WHEN n % 300 < 4 THEN 'queued' ELSE 'succeeded' END AS state,
                 (CAST(:ids AS text[]))[n] AS id, CAST(:tenants AS text[]) AS tenants,
                 CAST(:deployments AS text[]) AS deployments
          FROM generate_series(1, :rows) AS n) AS wanted
    """
)


@dataclass(frozen=True)
class Many:
    """A tenant with half of `ROWS` jobs, newest first."""

    database: Database
    tenant_id: str
    jobs: Sequence[Job]


@pytest.fixture(scope="module")
def many(migrated: Database) -> Many:
    """Two tenants with `ROWS` jobs between them over four days, of which one in 150 is rare in every way."""
    with migrated.transaction() as session:
        session.execute(text("TRUNCATE job, deployment, tenant CASCADE"))
        tenants = [make_tenant(session) for _ in range(2)]
        deployments = [make_deployment(session, "tiny", version) for version in ("1", "2")]
        _fill(session, tenants, deployments)
    with migrated.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE job, job_tag, deployment"))
    with migrated.transaction() as session:
        own = select(Job).where(Job.tenant_id == tenants[0].id).order_by(Job.id.desc())
        return Many(migrated, tenants[0].id, session.scalars(own).all())


def _fill(session: Session, tenants: list[Tenant], deployments: list[Deployment]) -> None:
    ids = [first_id("job", BEGIN + timedelta(minutes=number)) for number in range(1, ROWS + 1)]
    asked = {
        "begin": BEGIN,
        "rows": ROWS,
        "ids": ids,
        "tenants": [tenant.id for tenant in tenants],
        "deployments": [deployment.id for deployment in deployments],
    }
    session.execute(_FILL, asked)


def moments(name: str, first: float, last: float) -> dict[str, Any]:
    return {f"{name}_after": BEGIN + timedelta(hours=first), f"{name}_before": BEGIN + timedelta(hours=last)}


FILTERS = {
    "everything": JobFilter(),
    "a common state": JobFilter([JobState.SUCCEEDED]),
    "a rare state": JobFilter([JobState.FAILED]),
    "two rare states": JobFilter([JobState.FAILED, JobState.QUEUED]),
    "a rare and a common state": JobFilter([JobState.SUCCEEDED, JobState.FAILED]),
    "a state of which there is none": JobFilter([JobState.EXPIRED]),
    "a model": JobFilter(model="tiny"),
    "a model that nobody has": JobFilter(model="none"),
    "a rare version": JobFilter(model="tiny", version="2"),
    "a version and two states": JobFilter([JobState.FAILED, JobState.QUEUED], model="tiny", version="2"),
    "a common tag": JobFilter(tag="all"),
    "a rare tag": JobFilter(tag="rare"),
    "a rare tag of a rare state": JobFilter([JobState.FAILED], tag="rare"),
    "a class": JobFilter(job_class=JobClass.INTERACTIVE),
    "a rare key": JobFilter(key="key_rare"),
    "a batch": JobFilter(batch="batch_rare"),
    "a rare error": JobFilter(error="rare"),
    "old ones": JobFilter(created_before=BEGIN + timedelta(hours=2)),
    "made within an hour": JobFilter(**moments("created", 30, 31)),
    "finished within an hour": JobFilter(**moments("finished", 30, 31)),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_page_reads_little_more_than_itself(many: Many, name: str) -> None:
    for before in (None, first_id("job", BEGIN + timedelta(hours=60))):
        query = matching_ids(many.tenant_id, FILTERS[name], limit=LIMIT + 1, before=before)
        plan = explained(many.database, query)
        nodes = list(walk(plan))
        assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] != "deployment"]
        assert sum(map(rows_read, nodes)) <= MOST_READ, plan


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_it_says_and_nothing_else(many: Many, name: str) -> None:
    wanted = FILTERS[name]
    with many.database.transaction() as session:
        first, before = jobs.list_jobs(session, many.tenant_id, wanted, limit=15)
        rest = jobs.list_jobs(session, many.tenant_id, wanted, limit=ROWS, before=before)[0] if before else []
    assert [job.id for job in (*first, *rest)] == [job.id for job in many.jobs if matches(job, wanted)]


def matches(job: Job, wanted: JobFilter) -> bool:
    """The same by hand."""
    return all(
        (
            not wanted.states or job.state in wanted.states,
            wanted.model in (None, job.model_name),
            wanted.version in (None, job.model_version),
            wanted.tag is None or wanted.tag in job.tags,
            wanted.job_class in (None, job.job_class),
            wanted.key in (None, job.api_key_id),
            wanted.batch in (None, job.batch_id),
            wanted.error in (None, (job.error or {}).get("code")),
            wanted.created_after is None or job.created_at > wanted.created_after,
            wanted.created_before is None or job.created_at < wanted.created_before,
            wanted.finished_after is None or (job.finished_at is not None and job.finished_at > wanted.finished_after),
            wanted.finished_before is None
            or (job.finished_at is not None and job.finished_at < wanted.finished_before),
        )
    )


def explained(database: Database, query: Any) -> dict[str, Any]:
    with database.transaction() as session:
        compiled = query.compile(session.get_bind(), compile_kwargs={"render_postcompile": True})
        connection = session.connection().connection.driver_connection
        assert connection is not None
        row = connection.execute("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + str(compiled), compiled.params)
        ((document,),) = row.fetchall()
    plan: dict[str, Any] = document[0]["Plan"]
    return plan


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def rows_read(node: dict[str, Any]) -> float:
    """Rows that a scan returned or threw away, and that a sort took in, over all its repetitions."""
    if "Scan" not in node["Node Type"] and node["Node Type"] != "Sort":
        return 0
    once = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float(once * node["Actual Loops"])


def test_a_page_stands_still_while_jobs_are_added(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        old = [submit_job(session, tenant, tags=["red"]).id for _ in range(5)]
        wanted = JobFilter([JobState.QUEUED, JobState.RUNNING], tag="red", model="tiny")
        first, before = jobs.list_jobs(session, tenant.id, wanted, limit=2)
        for _ in range(3):
            submit_job(session, tenant, tags=["red"])
        second, before = jobs.list_jobs(session, tenant.id, wanted, limit=2, before=before)
        third, end = jobs.list_jobs(session, tenant.id, wanted, limit=2, before=before)
    assert [job.id for job in (*first, *second, *third)] == old[::-1]
    assert end is None


def test_how_a_model_was_asked_for_is_told_apart_from_its_name(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        by_name = submit_job(session, tenant, model="tiny").id
        by_version = submit_job(session, tenant, model="tiny:1").id
        found = {
            model: [job.id for job in jobs.list_jobs(session, tenant.id, JobFilter(model=model), limit=9)[0]]
            for model in ("tiny", "tiny:1", "tiny@champion", "tin")
        }
    assert found == {"tiny": [by_version, by_name], "tiny:1": [by_version], "tiny@champion": [], "tin": []}


def test_tags_are_found_as_they_are_now(database: Database) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        job = submit_job(session, tenant, tags=["a", "b", "a"])
        plain = submit_job(session, tenant)
        assert session.scalar(select(func.count()).select_from(JobTag)) == 2
        session.execute(update(Job).where(Job.id == job.id).values(tags=["c"]))

        def tagged(tag: str) -> list[str]:
            return [found.id for found in jobs.list_jobs(session, tenant.id, JobFilter(tag=tag), limit=9)[0]]

        assert (tagged("a"), tagged("c")) == ([], [job.id])
        assert [found.id for found in jobs.list_jobs(session, tenant.id, JobFilter(), limit=9)[0]] == [plain.id, job.id]


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_moments_at_the_end_of_all_time_are_moments_too(database: Database, moment: datetime) -> None:
    with database.transaction() as session:
        make_deployment(session)
        tenant = make_tenant(session)
        submit_job(session, tenant)
        newer = jobs.list_jobs(session, tenant.id, JobFilter(created_after=moment), limit=9)[0]
        older = jobs.list_jobs(session, tenant.id, JobFilter(created_before=moment), limit=9)[0]
    assert (len(newer), len(older)) == ((1, 0) if moment.year == 1 else (0, 1))
