"""What each page costs the web process with many jobs in the database, and how much of it travels.

python -m bench.pages [--jobs N] [--json PATH]

Server time is from the request to the last byte of the answer, in this process, with a real PostgreSQL and Redis.
With each page stand the large tables that a statement of it reads from beginning to end, and what a first visit
fetches: the page, its stylesheet, fonts and scripts, and the figures of its charts, as they travel.
"""

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from penstock.app import create_app
from penstock.auth.models import User
from penstock.auth.services import bootstrap
from penstock.clock import utc_now
from penstock.dashboard.charts import CHARTS
from penstock.db import Database
from penstock.embedded import EmbeddedServices
from penstock.ids import first_id
from penstock.migrate import upgrade
from penstock.portal.sessions import session_of
from penstock.settings import Settings
from pydantic import SecretStr
from sqlalchemy import event, select, text

from bench.page_parts.heads import Fetched, first_load, read
from bench.page_parts.installation import furnish
from bench.platform_parts.report import where

ROOT = Path(__file__).parent.parent
ROUNDS = 15
GZIP = b"\x1f\x8b"
DAYS = 30
LARGE = (
    "job", "job_tag", "job_run", "usage_entry", "event", "feed_event", "batch_line", "webhook_delivery", "metric_point",
    "dead_letter", "audit_entry",
)  # fmt: skip
MODEL = """
INSERT INTO deployment (id, model_name, model_version, source, manifest, recipe, context_length, digest, first_ready_at)
VALUES ('dep_bench', 'bench', '1', '/nowhere', '{}', '{}', 4096, 'x', now());
INSERT INTO routing_policy (model_name, champion_id, champion_since, reason) VALUES ('bench', 'dep_bench', now(), 'x')
"""
JOBS = """
INSERT INTO job (id, tenant_id, model, input, params, seed, deployment_id, model_name, model_version, routing, state,
  prompt_tokens, output_tokens, output, error, tags, batch_id, batch_line, job_class, runs, last_event,
  created_at, queued_at, started_at, first_token_at, finished_at)
SELECT id, :tenant, 'bench', CAST(:input AS jsonb), '{"temperature": 0}', at, 'dep_bench', 'bench', '1',
  '{"rule": "alias", "alias": "champion"}', CASE WHEN over THEN ended ELSE 'queued' END, 320, 90,
  CASE WHEN over AND ended = 'succeeded' THEN CAST(:output AS jsonb) END,
  CASE WHEN over AND ended = 'failed' THEN CAST('{"code": "engine_crashed", "message": "it died"}' AS jsonb) END,
  ARRAY['tag-' || at % 20], CASE WHEN at % 4 = 0 THEN 'batch_bench' END, CASE WHEN at % 4 = 0 THEN at / 4 END,
  CASE WHEN at % 4 = 0 THEN 1 ELSE 0 END, 1, 3, made, made, made + interval '1 s',
  CASE WHEN over THEN made + interval '2 s' END, CASE WHEN over THEN made + interval '9 s' END
FROM (
  SELECT id, made, at, at <= :jobs - 200 AS over, CASE WHEN at % 40 = 0 THEN 'failed' ELSE 'succeeded' END AS ended
  FROM unnest(CAST(:ids AS text[]), CAST(:moments AS timestamptz[])) WITH ORDINALITY AS given (id, made, at)
) AS each
"""
AROUND = """
INSERT INTO event (job_id, number, tenant_id, type, data)
  SELECT id, number, tenant_id, 'job.queued', '{"model_version": "1"}' FROM job, generate_series(1, 3) AS number;
INSERT INTO job_run (job_id, fence, worker_id, started_at, ended_at, outcome)
  SELECT id, 1, 'wrk_bench', started_at, finished_at, 'finished' FROM job WHERE finished_at IS NOT NULL;
INSERT INTO usage_entry (job_id, tenant_id, model_name, model_version, prompt_tokens, cached_tokens, output_tokens,
  run_milliseconds, device_seconds, created_at)
  SELECT id, tenant_id, 'bench', '1', 320, 100, 90, 7000, 1.5, finished_at FROM job WHERE finished_at IS NOT NULL;
INSERT INTO webhook_delivery (id, tenant_id, job_id, event_number, url, payload, status, attempts, next_attempt_at)
  SELECT 'msg_' || substr(id, 5), tenant_id, id, 1, 'https://example.com/hook', '{"type": "job.queued"}',
  'delivered', 1, NULL FROM job;
INSERT INTO batch (id, tenant_id, state, input_file_id, endpoint, completion_window, invalid_lines, expires_at,
  in_progress_at, total_lines, settled, succeeded_lines)
  SELECT 'batch_bench', tenant_id, 'in_progress', 'file_bench', '/v1/jobs', '24h', 'skip', now() + interval '1 day',
  now() - interval '1 hour', count(*), count(finished_at), count(finished_at) FROM job WHERE batch_id IS NOT NULL
  GROUP BY tenant_id;
INSERT INTO batch_line (batch_id, line, state, custom_id, start, length, job_id, position, settled_at)
  SELECT batch_id, batch_line, CASE WHEN finished_at IS NULL THEN 'open' ELSE 'succeeded' END,
  'id-' || batch_line, 0, 9, id, CASE WHEN finished_at IS NOT NULL THEN batch_line END, finished_at
  FROM job WHERE batch_id IS NOT NULL
"""


@dataclass(frozen=True)
class Page:
    """One page: milliseconds of server time, bytes of its HTML, plain and packed, and what it asks the database.

    Of a first visit: requests, bytes as they travel, and what keeps the browser from painting until it is there.
    """

    path: str
    median_ms: float
    slowest_ms: float
    bytes: int
    packed_bytes: int
    statements: int
    read_whole: list[str]
    first_requests: int
    first_bytes: int
    blocking: int


def fill(database: Database, jobs: int, tenant_id: str) -> str:
    """A model and so many jobs over the last month with all that hangs on them; the id of one that succeeded."""
    now = utc_now()
    moments = [now - timedelta(days=DAYS) * (1 - place / jobs) for place in range(1, jobs + 1)]
    ids = [f"{first_id('job', moment)[:-6]}{place:06d}" for place, moment in enumerate(moments)]
    values = {
        "tenant": tenant_id, "jobs": jobs, "ids": ids, "moments": moments,
        "input": json.dumps({"messages": [{"role": "user", "content": "word " * 200}]}),
        "output": json.dumps({"choices": [{"index": 0, "text": "word " * 90, "finish_reason": "stop"}]}),
    }  # fmt: skip
    with database.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in MODEL.split(";"):
            session.execute(text(statement))
        session.execute(text(JOBS), values)
        for statement in AROUND.split(";"):
            session.execute(text(statement))
    return ids[jobs // 2 + 1]


def analyse(database: Database) -> None:
    """Have PostgreSQL know what it has, as it does by itself after a while."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def paths(job_id: str) -> list[str]:
    """Every page of a tenant that reads jobs or what hangs on them."""
    return [
        "/jobs", "/jobs/rows", "/jobs?status=failed", "/jobs?model=bench&within=24h", "/jobs?tag=tag-7",
        "/jobs?batch=batch_bench&class=batch", "/jobs?status=failed,expired&model=bench", f"/jobs?before={job_id}",
        f"/jobs/{job_id}", f"/jobs/{job_id}/changes", "/jobs/bulk", "/jobs/bulk/new?action=replay&tag=tag-7",
        "/playground", f"/playground?job={job_id}", "/batches", "/batches/batch_bench",
        "/batches/batch_bench?status=open", "/batches/batch_bench?after=20000", "/files", "/keys", "/webhooks",
        "/usage?days=7", "/usage?days=30", "/usage?days=90&by=tag", "/usage?by=key",
    ]  # fmt: skip


def operators_paths(ids: dict[str, str]) -> list[str]:
    """Every page for operators, and what their charts of a day and of a month draw."""
    charts = [f"/admin/charts/{name}?range={length}" for length in ("24h", "30d") for name in CHARTS]
    rollout = f"/admin/rollouts/{ids['rollout']}"
    return [
        "/admin/", "/admin/?range=24h", "/admin/?range=30d", "/admin/figures", *charts, "/admin/workers",
        "/admin/models", "/admin/models/bench", "/admin/rollouts", "/admin/rollouts/new", rollout, f"{rollout}/parts",
        f"{rollout}/flips", f"{rollout}/charts/canary/0/errors", "/admin/dead-letters",
        "/admin/dead-letters?reason=engine_crashed&model=bench&version=1", "/admin/dead-letters?state=replayed",
        f"/admin/dead-letters/{ids['letter']}", "/admin/tenants", f"/admin/tenants/{ids['tenant']}", "/admin/audit",
        "/admin/audit?action=webhook_endpoint.created", "/admin/health",
    ]  # fmt: skip


def measure(client: FlaskClient, database: Database, path: str) -> Page:
    """The page's figures over some rounds, after two that warm up."""
    taken: list[float] = []
    statements: list[tuple[str, Any]] = []
    with _heard(database, statements):
        body = _get(client, path)
    _get(client, path)
    for _ in range(ROUNDS):
        started = time.perf_counter()
        _get(client, path)
        taken.append((time.perf_counter() - started) * 1000)
    whole = sorted({table for each in statements for table in _read_whole(database, each)})
    page = Fetched(len(body), body.decode())
    first = first_load(path, page, lambda address: fetched(client, address))
    return Page(
        path, round(statistics.median(taken), 1), round(max(taken), 1), len(body), len(gzip.compress(body)),
        len(statements), whole, first.requests, first.bytes, len(read(page.text).blocking),
    )  # fmt: skip


def _get(client: FlaskClient, path: str, **headers: str) -> bytes:
    with client.get(path, headers={"Accept": "text/html", **headers}) as answer:
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        return bytes(answer.data)


def fetched(client: FlaskClient, address: str) -> Fetched:
    """As a browser fetches it that takes gzip."""
    body = _get(client, address, **{"Accept-Encoding": "gzip"})
    plain = gzip.decompress(body) if body[:2] == GZIP else body
    return Fetched(len(body), plain.decode() if address.endswith(".js") else "")


@contextmanager
def _heard(database: Database, statements: list[tuple[str, Any]]) -> Iterator[None]:
    """Notes what is asked of the database."""

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", hear)
    yield
    event.remove(database.engine, "before_cursor_execute", hear)


def _read_whole(database: Database, asked: tuple[str, Any]) -> list[str]:
    """Large tables that PostgreSQL reads from beginning to end for this statement."""
    statement, parameters = asked
    if not statement.lstrip().startswith(("SELECT", "WITH")):
        return []
    with database.engine.begin() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()[0]["Plan"]
    return [node["Relation Name"] for node in _nodes(plan) if _is_whole(node)]


def _is_whole(node: dict[str, Any]) -> bool:
    return node["Node Type"].endswith("Seq Scan") and node.get("Relation Name") in LARGE


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def signed_in(app: Flask, database: Database) -> FlaskClient:
    """A browser of the first person."""
    with database.transaction() as session:
        user = session.scalars(select(User)).one()
    client = app.test_client()
    with client.session_transaction() as cookie:
        cookie.update(session_of(user))
    return client


@contextmanager
def running() -> Iterator[tuple[Flask, Database, str]]:
    """The application on services of its own, with its first tenant."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with EmbeddedServices(Path(folder) / "state", mlflow=False, durable=False) as services:
            settings = Settings(
                database_url=SecretStr(services.database_url),
                redis_url=SecretStr(services.redis_url),
                secret_key=SecretStr("only-for-the-bench"),
                state_dir=Path(folder) / "state",
            )
            upgrade(settings)
            database = Database(settings)
            with database.transaction() as session:
                made = bootstrap(session, environment=settings.environment)
            assert made is not None
            app = create_app(settings, database=database)
            yield app, database, made.tenant_id
            app.extensions["penstock"].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "pages.json")
    arguments = parser.parse_args()
    place = where()
    with running() as (app, database, tenant_id):
        job_id = fill(database, arguments.jobs, tenant_id)
        asked = [*paths(job_id), *operators_paths(furnish(database))]
        analyse(database)
        client = signed_in(app, database)
        pages = []
        for path in asked:
            pages.append(measure(client, database, path))
            print(pages[-1], flush=True)
    record = place | {
        "jobs": arguments.jobs,
        "largest_first_load": asdict(max(pages, key=lambda page: page.first_bytes)),
        "slowest": asdict(max(pages, key=lambda page: page.median_ms)),
        "largest": asdict(max(pages, key=lambda page: page.bytes)),
        "pages": [asdict(page) for page in pages],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    for name in ("slowest", "largest_first_load"):
        print(f"{name}: {record[name]}")


if __name__ == "__main__":
    main()
